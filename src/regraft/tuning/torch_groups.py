"""Groups of a `torch.optim` optimizer that follow a Course, and whether given ones do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from regraft.errors import TargetError
from regraft.tuning.courses import Course


def grouped(
    course: Course, parameters: Mapping[str, Any], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """One group for each rate, with and without decay; what never learns is in none."""
    found: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        treatment = course[name]
        if treatment.since is None:
            continue
        group = found.setdefault(
            (treatment.rate, treatment.decays),
            {
                "params": [],
                "names": [],
                "lr": lr * treatment.rate,
                "weight_decay": weight_decay if treatment.decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(found.values())


def heeded(
    course: Course, parameters: Mapping[str, Any], optimizers: Iterable[torch.optim.Optimizer]
) -> None:
    """Raises `TargetError` where a policy tells of rates and an optimizer has others: one that a
    trainer made by itself, mostly. Rates are compared within each optimizer, as a schedule may have
    begun; parameters that it does not hold (or holds in shards) tell nothing.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    for optimizer in optimizers:
        shares: dict[str, float] = {}
        for group in optimizer.param_groups:
            lr = float(group.get("initial_lr", group["lr"]))
            for name in (names.get(id(parameter)) for parameter in group["params"]):
                if name is None or course[name].since is None:
                    continue
                rate = course[name].rate
                shares[name] = lr / rate if rate else math.inf if lr else math.nan
        told = {name: share for name, share in shares.items() if not math.isnan(share)}
        common = max(told.values(), default=0.0)
        apart = [n for n, share in told.items() if not math.isclose(share, common, rel_tol=1e-6)]
        if apart or math.isinf(common):
            raise TargetError(
                type(optimizer).__name__,
                found=f"{len(apart) or len(told)} parameters with a rate that is not the policy's",
                expected="groups whose rates are in proportion to the policy's",
                hint="make it of tuning.groups(lr=…)",
                problems=[f"{n}: the policy's share is {course[n].rate:g}" for n in apart or told],
            )
