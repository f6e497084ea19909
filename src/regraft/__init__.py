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
    from regraft._api import (
        apply,
        apply_delta,
        convert,
        delta,
        diff,
        export,
        family_tree,
        finetune,
        has_lineage,
        interpolate,
        load,
        make_delta,
        plan,
        pretrained,
        record,
        restore,
        save,
        soup,
        sources_of,
        trace,
        verify,
    )
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
    from regraft.plans import Evidence, Graft, Plan
    from regraft.reports import report
    from regraft.rules import fresh, leave, load_rules, pin, rename, widen
    from regraft.tensors import Catalogue, Skeleton, TensorInfo
    from regraft.transfer import Receipt
    from regraft.tuning import Policy, Settings, Tuned
    from regraft.tuning.data import Data, Reading
    from regraft.verification import Probe, Report

# Where each name lives; a test holds this to the imports above, which are for type checkers.
_ROOMS = {
    "_api": "apply apply_delta convert delta diff export family_tree finetune has_lineage "
    "interpolate load make_delta plan pretrained record restore save soup sources_of trace verify",
    "checkpoints": "Checkpoint open",
    "errors": "AmbiguousMatch CorruptFile FormatError IncompletePlan MissingDependency "
    "MissingShard PlanError RegraftError RuleMatchedNothing ShapeMismatch StalePlan TargetError "
    "TransferError UnknownFormat UnsafeFile VerificationFailed",
    "lineage": "Diff Lineage",
    "lineage.pedigree": "FamilyTree",
    "plans": "Evidence Graft Plan",
    "reports": "report",
    "rules": "fresh leave load_rules pin rename widen",
    "tensors": "Catalogue Skeleton TensorInfo",
    "transfer": "Receipt",
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
