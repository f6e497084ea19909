"""The pretrained values, read from the file that they came from whenever they are needed.

L2-SP pulls weights towards them. Those of a file are not copied: where it lies uncompressed on the
disk its bytes are mapped into memory and shared with every other process that reads it, and
operations of the plan that only rearrange (transposes, slices) are views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.errors import StalePlan, TargetError
from regraft.receipts import Receipt
from regraft.tensors import Read
from regraft.transfer import fingerprint, make

if TYPE_CHECKING:
    from regraft.tensors import Array
    from regraft.tuning.courses import Course


class Reference:
    """Pretrained values by the names of the model, in its layout and dtype.

    **Arguments:**

    - `receipt`: what loading gave; its plan says how values were made.
    - `read`: reads the source (`rg.open(path).read`). It must stay open.
    - `copy`: keeps the values, where what `read` gives is memory that may be trained (a live
      model's).

    **Raises** `StalePlan`, with all findings, where the source holds other values than were loaded.
    """

    def __init__(self, receipt: Receipt, read: Read, *, copy: bool = False) -> None:
        plan = receipt.plan
        self._plan, self._read = plan, read
        self._kept: dict[str, Array] = {}
        # Where a model kept entries of its own, there is no pretrained tensor of that shape.
        self._grafts = {n: plan.grafts[n] for n in receipt.hashes if not plan.grafts[n].keeps}
        if copy:
            self._kept = {name: self[name].copy() for name in self._grafts}
        wrong = [n for n in self._grafts if fingerprint(self[n]) != receipt.hashes[n]]
        if wrong:
            raise StalePlan(
                plan.source.label,
                found=f"{len(wrong)} tensors with other values than were loaded",
                expected="the file that the model was loaded from",
                problems=wrong,
            )

    def __contains__(self, name: object) -> bool:
        return name in self._grafts

    def __getitem__(self, name: str) -> Array:
        kept = self._kept.get(name)
        return make(self._plan, self._grafts[name], self._read) if kept is None else kept


def pulls(course: Course, reference: Reference | None) -> dict[str, tuple[float, Reference | None]]:
    """L2-SP by tensor that learns: how much it is pulled, and whether to its value in the
    reference, or to 0 (`None`); Li et al. 2018, eq. (4).

    **Raises** `TargetError` where a policy pulls and it is not known to what.
    """
    policy = course.policy
    if policy.l2_sp and reference is None:
        raise TargetError(
            "L2-SP",
            found="no pretrained values to pull towards",
            expected="a Reference",
            hint="Reference(receipt, rg.open(path).read)",
        )
    if policy.l2_sp_fresh and not course.fresh:
        raise TargetError(
            "Policy.l2_sp_fresh",
            found="a model of which no tensor is known to be fresh",
            expected="a receipt with fresh tensors, which alone are pulled to 0",
            hint="load with fresh=['head.*'] first, and give receipt=; weight_decay pulls all to 0",
        )
    found: dict[str, tuple[float, Reference | None]] = {}
    for name, treatment in course.items():
        if treatment.since is None or treatment.statistic:
            continue
        if policy.l2_sp and reference is not None and name in reference:
            found[name] = policy.l2_sp, reference
        elif policy.l2_sp_fresh and name in course.fresh:
            found[name] = policy.l2_sp_fresh, None
    return found
