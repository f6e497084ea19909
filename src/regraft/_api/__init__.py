"""The verbs. Each takes what people have at hand (paths, live models, plans) and wires the rooms.

This and `_sides` are the only rooms that see both formats and targets. One file per family of
verbs: planning, loading, writing, access (what became of weights), deltas, restoring,
exporting, training.
"""

from regraft._api.access import delta, diff, pretrained, sources_of, trace
from regraft._api.blending import interpolate, soup
from regraft._api.deltas import apply_delta, make_delta
from regraft._api.exporting import export
from regraft._api.heritage import family_tree
from regraft._api.keeping import has_lineage
from regraft._api.loading import apply, load
from regraft._api.planning import plan
from regraft._api.proving import verify
from regraft._api.recording import record
from regraft._api.restoring import restore
from regraft._api.training import finetune
from regraft._api.writing import convert, save

__all__ = [
    "apply",
    "apply_delta",
    "convert",
    "delta",
    "diff",
    "export",
    "family_tree",
    "finetune",
    "has_lineage",
    "interpolate",
    "load",
    "make_delta",
    "plan",
    "pretrained",
    "record",
    "restore",
    "save",
    "sources_of",
    "soup",
    "trace",
    "verify",
]
