"""Where tests find what is not in the tree."""

from pathlib import Path

# Real checkpoints by other people, beside the checkout; tests skip where they are absent.
REAL = Path(__file__).parents[2] / "shared" / "real"
