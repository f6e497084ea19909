"""The verbs. Each takes what people have at hand (paths, live models, plans) and wires the rooms.

This and `_sides` are the only rooms that see both formats and targets. One file per family of
verbs: planning, loading, writing, access (what became of weights), training.
"""

from regraft._api.access import diff, pretrained, trace
from regraft._api.blending import interpolate, soup
from regraft._api.loading import apply, load, verify
from regraft._api.planning import plan
from regraft._api.training import finetune
from regraft._api.writing import convert, save

__all__ = [
    "apply",
    "convert",
    "diff",
    "finetune",
    "interpolate",
    "load",
    "plan",
    "pretrained",
    "save",
    "soup",
    "trace",
    "verify",
]
