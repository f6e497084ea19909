"""Where weights come from and what became of them.

- `records`: what a lineage is; `sidecar`: where it lies if not in its file. `describing`: from a
  receipt to a lineage. `returning`: from tuned weights back to the source's terms.
- `correspondence`: which tensor of one file is which of another; `confirming`: which of these
  pairs are more than guesses. `diffing`, `measuring`, `entries`:
  how they differ. `fingerprints`: tensors known by their values.
- `deltas`, `delta_making`, `delta_applying`, `delta_frames`: a tuned file as what it adds.
- `portraits`, `kinship`, `arithmetic`, `directions`, `hints`, `written`, `pairs`, `bends`,
  `rooted`, `likeliest`, `means`, `roundings`, `heritage`, `pedigree`: which file came from which.

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
