"""Train mode left on: a BatchNorm uses the batch's own statistics, a dropout drops.

`model.eval()` was forgotten, a layer is called with `training=True`, or a function has it written
in. Tried with inference mode in the module, and in the argument of the function.
"""

from __future__ import annotations

from collections.abc import Iterable

from regraft.calls import InFunction, Setting
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where

_FUNCTIONS = ("batch_norm", "dropout", "dropout1d", "dropout2d", "instance_norm", "alpha_dropout",
              "feature_alpha_dropout")  # fmt: skip


def propose(scene: Scene) -> Iterable[Hypothesis]:
    for path in scene.inner():
        module = scene.modules[path]
        if module.mode:
            yield Hypothesis(
                "train-mode", (Setting(path, {"training": False}),), (path,),
                "inference mode instead of training mode", f"{where(path)}.eval()",
            )  # fmt: skip
    # Each call of a dropout alone changes little where several are on: all of them, too.
    calls = [c for c in scene.calls(*_FUNCTIONS) if _on(c.name, c.arguments)]
    edits = [InFunction(c.path, c.name, c.number, _off(c.name)) for c in calls]
    groups = [(edit,) for edit in edits] + ([tuple(edits)] if len(edits) > 1 else [])
    for group in groups:
        paths = tuple(dict.fromkeys(edit.path for edit in group))
        yield Hypothesis(
            "train-mode", group, paths,
            f"{group[0].name} in inference mode instead of training mode",
            f"{in_forward(paths[0])}: {group[0].name}(…, training=self.training)",
        )  # fmt: skip


def _on(name: str, arguments: object) -> bool:
    given = arguments if isinstance(arguments, dict) else {}
    return bool(given.get("use_input_stats" if name == "instance_norm" else "training", True))


def _off(name: str) -> dict[str, object]:
    return {"use_input_stats" if name == "instance_norm" else "training": False}
