"""The output layer shares its weights with the embedding on one side only.

Where the source's are tied and the target has a tensor of its own for them, which the file did not
hold, it keeps what it was made with. Where the target's are tied and the source's are not, one of
the two is wrong. Tried with the values that the output layer, or the embedding, has in the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from regraft.calls import Edit, Rewritten, Written
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, Tie


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for path in scene.inner():
        for tie in scene.ties(path):
            edit: Edit = Written(tie.name, tie.expected)
            if tie.tied:  # written, it would change the other, too
                edit = Rewritten(path, _exchanged(tie))
            said = "tied here, and not in the source" if tie.tied else "not tied to the embedding"
            fix = f"untie {tie.name} and {tie.embedding}, and load both"
            if not tie.tied:
                fix = f"tie {tie.name} to {tie.embedding}"
            yield Hypothesis("tied-head", (edit,), (path,), f"the output layer is {said}", fix)


def _exchanged(tie: Tie) -> Callable[[list[Array], list[Array]], list[Array]]:
    """The layer's result with other weights: of a lookup, or of a product."""

    def change(inputs: list[Array], outputs: list[Array]) -> list[Array]:
        x, result = inputs[0], outputs[0]
        if x.dtype.kind in "iu":
            return [tie.expected[x].astype(result.dtype), *outputs[1:]]
        axes = 1 if x.shape[-1] == tie.expected.shape[-1] else 0
        wide: Array = x.astype(np.float64)
        difference: Array = tie.expected.astype(np.float64) - tie.actual.astype(np.float64)
        added = wide @ (difference.T if axes else difference)
        return [(result + added).astype(result.dtype), *outputs[1:]]

    return change
