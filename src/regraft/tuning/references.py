"""The pretrained values, read from the file that they came from whenever they are needed.

L2-SP pulls weights towards them. They are not copied: where the file lies uncompressed on the disk
its bytes are mapped into memory and shared with every other process that reads it, and operations
of the plan that only rearrange (transposes, slices) are views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.errors import StalePlan
from regraft.tensors import Read
from regraft.transfer import Receipt, fingerprint, make

if TYPE_CHECKING:
    from regraft.tensors import Array


class Reference:
    """Pretrained values by the names of the model, in its layout and dtype.

    **Arguments:**

    - `receipt`: what loading gave; its plan says how values were made.
    - `read`: reads the source (`rg.open(path).read`). It must stay open.

    **Raises** `StalePlan`, with all findings, where the source holds other values than were loaded.
    """

    def __init__(self, receipt: Receipt, read: Read) -> None:
        plan = receipt.plan
        self._plan, self._read = plan, read
        # Where a model kept entries of its own, there is no pretrained tensor of that shape.
        self._grafts = {n: plan.grafts[n] for n in receipt.hashes if not plan.grafts[n].keeps}
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
        return make(self._plan, self._grafts[name], self._read)
