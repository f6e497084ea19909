"""A tensor of the target is not what the plan makes of the source.

It was not loaded, was changed afterwards, or was loaded from another file. Proven by writing what
the plan says: the outputs agree.
"""

from __future__ import annotations

from collections.abc import Iterable

from regraft.calls import Written
from regraft.verification.causes._scene import Hypothesis, Scene


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for paths, wrong in scene.wrong_tensors():
        edits = tuple(Written(tensor.name, tensor.expected) for tensor in wrong)
        names = ", ".join(t.name.replace("/", ".").rpartition(".")[2] for t in wrong)
        text = f"{names} other than the plan says"
        yield Hypothesis(
            "weights", edits, paths, text, "rg.apply(plan, source, model)  # " + wrong[0].name
        )
