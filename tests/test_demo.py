"""The demonstration runs, and its numbers are what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_SHIM = """
import torch
kept = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    kept.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def test_demo(tmp_path: Path) -> None:
    """In a process of its own: it chooses Keras' backend."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("KERAS_BACKEND")
    code = (
        f"{_SHIM}\nimport sys; sys.argv = ['regraft', 'demo', '--seeds', '2', '--json', "
        f"'--folder', {str(tmp_path)!r}]\nfrom regraft.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "from scratch",
        "the naive loop",
        "strict=False",
        "linear probe",
        "fine-tuned",
    ]
    assert all(len(row["accuracies"]) == 2 for row in rows.values())
    assert len({value for row in rows.values() for value in row["accuracies"]}) > 4
    assert rows["strict=False"]["accuracies"] == rows["from scratch"]["accuracies"]
    assert rows["fine-tuned"]["mean"] > rows["from scratch"]["mean"]
    assert found["largest_error"] < 1e-4
    for name in ("pretrained", "tuned", "report"):
        assert Path(found[name]).is_file()
