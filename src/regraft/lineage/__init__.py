"""Where weights come from and what became of them.

- `records`: what a lineage is, and how it is kept. `describing`: from a receipt to a lineage.
- `correspondence`: which tensor of one file is which of another. `diffing`: how they differ.

Like matching, this room sees neither files nor frameworks: values come through functions.
"""

from __future__ import annotations

from regraft.lineage.correspondence import correspondence, share_a_vocabulary
from regraft.lineage.describing import (
    checked,
    describe,
    parent_of,
    plan_from,
    plan_of,
    speaks_of,
)
from regraft.lineage.diffing import diff
from regraft.lineage.entries import Diff, Entry, Module
from regraft.lineage.measuring import difference
from regraft.lineage.records import KEY, Lineage, Origin, decode, encode

__all__ = [
    "KEY",
    "Diff",
    "Entry",
    "Lineage",
    "Module",
    "Origin",
    "checked",
    "correspondence",
    "decode",
    "describe",
    "diff",
    "difference",
    "encode",
    "parent_of",
    "plan_from",
    "plan_of",
    "share_a_vocabulary",
    "speaks_of",
]
