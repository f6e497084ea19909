"""Regraft: move pretrained weights into your model, and know that they arrived.

Everything public is reached from here and loaded on first use: `import regraft` alone imports
neither numpy nor a framework.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft import operations as ops
    from regraft._api.access import delta, diff, pretrained, sources_of, trace
    from regraft._api.blending import interpolate, soup
    from regraft._api.deltas import apply_delta, make_delta
    from regraft._api.exporting import export
    from regraft._api.heritage import family_tree
    from regraft._api.keeping import has_lineage
    from regraft._api.loading import apply, load
    from regraft._api.planning import Plan, plan
    from regraft._api.proving import verify
    from regraft._api.recording import record
    from regraft._api.restoring import restore
    from regraft._api.training import finetune
    from regraft._api.writing import convert, save
    from regraft.checkpoints import Checkpoint, open
    from regraft.errors import (
        AmbiguousMatch,
        CorruptFile,
        FormatError,
        IncompletePlan,
        MissingDependency,
        MissingShard,
        PlanError,
        RegraftError,
        RuleMatchedNothing,
        ShapeMismatch,
        StalePlan,
        TargetError,
        TransferError,
        UnknownFormat,
        UnsafeFile,
        VerificationFailed,
    )
    from regraft.lineage import Diff, Lineage
    from regraft.lineage.pedigree import FamilyTree
    from regraft.plans import Evidence, Graft
    from regraft.receipts import Receipt
    from regraft.reports import report
    from regraft.rules import fresh, leave, load_rules, pin, rename, widen
    from regraft.tensors import Catalogue, Skeleton, TensorInfo
    from regraft.tuning import Policy, Settings, Tuned
    from regraft.tuning.data import Data, Reading
    from regraft.verification import Probe, Report

# Where each name lives; a test holds this to the imports above, which are for type checkers.
_ROOMS = {
    "_api.access": "delta diff pretrained sources_of trace",
    "_api.blending": "interpolate soup",
    "_api.deltas": "apply_delta make_delta",
    "_api.exporting": "export",
    "_api.heritage": "family_tree",
    "_api.keeping": "has_lineage",
    "_api.loading": "apply load",
    "_api.planning": "Plan plan",  # which tells plans what the tensors of a live model are
    "_api.proving": "verify",
    "_api.recording": "record",
    "_api.restoring": "restore",
    "_api.training": "finetune",
    "_api.writing": "convert save",
    "checkpoints": "Checkpoint open",
    "errors": "AmbiguousMatch CorruptFile FormatError IncompletePlan MissingDependency "
    "MissingShard PlanError RegraftError RuleMatchedNothing ShapeMismatch StalePlan TargetError "
    "TransferError UnknownFormat UnsafeFile VerificationFailed",
    "lineage": "Diff Lineage",
    "lineage.pedigree": "FamilyTree",
    "plans": "Evidence Graft",
    "receipts": "Receipt",
    "reports": "report",
    "rules": "fresh leave load_rules pin rename widen",
    "tensors": "Catalogue Skeleton TensorInfo",
    "tuning": "Policy Settings Tuned",
    "tuning.data": "Data Reading",
    "verification": "Probe Report",
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted([*_HOMES, "ops"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "ops":
        value = importlib.import_module("regraft.operations")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"regraft.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'regraft' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
