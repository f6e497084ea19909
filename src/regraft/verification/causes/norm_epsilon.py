"""A normalisation adds another epsilon to the variance.

Keras' BatchNormalization has 1e-3 where PyTorch's has 1e-5, LayerNorms have 1e-5, 1e-6 or 1e-12.
Weights fit and outputs differ by little, more where variances are small. Tried: the source's own
setting where it tells one, then the values in use, in the module's attribute, in the argument of
the function, or in the small number that hand-written code adds before a root.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from regraft.calls import InFunction, Setting
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward, where

_NAMES = (
    "eps", "epsilon", "variance_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_eps",
    "rms_norm_eps",
)  # fmt: skip
_VALUES = (1e-3, 1e-5, 1e-6, 1e-12, 1e-8, 1e-4, 1e-2, 1e-7, 1e-1, 1e-9, 1e-10, 2e-5, 0.0)
_FUNCTIONS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_SMALL = 0.05


def propose(scene: Scene) -> Iterable[Hypothesis]:
    told: set[tuple[str, float]] = set()
    for path in scene.inner():
        settings = scene.modules[path].settings
        for name in (n for n in _NAMES if n in settings):
            present = settings[name]
            for value in _values(scene, path, present):
                told.add((path, value))
                yield Hypothesis(
                    "norm-epsilon", (Setting(path, {name: value}),), (path,),
                    _text(value, present), f"{where(path)}.{name} = {value!r}",
                )  # fmt: skip
    for call in scene.calls(*_FUNCTIONS):
        present = call.arguments.get("eps")
        for value in _values(scene, call.path, present):
            if (call.path, value) in told:
                continue
            edit = InFunction(call.path, call.name, call.number, {"eps": value})
            yield Hypothesis(
                "norm-epsilon", (edit,), (call.path,), _text(value, present),
                f"{in_forward(call.path)}: {call.name}(…, eps={value!r})",
            )  # fmt: skip
    for call in scene.calls("add", "clamp", "clamp_min", "maximum"):
        for key, present in call.arguments.items():
            if isinstance(present, float) and 0.0 < present < _SMALL:
                for value in _values(scene, call.path, present):
                    edit = InFunction(call.path, call.name, call.number, {key: value})
                    yield Hypothesis(
                        "norm-epsilon", (edit,), (call.path,), _text(value, present),
                        f"{in_forward(call.path)}: {value!r} in place of {present!r}",
                    )  # fmt: skip


def _values(scene: Scene, path: str, present: object) -> Iterator[float]:
    own = [v for v in scene.source_setting(path, *_NAMES) if isinstance(v, (int, float))]
    yield from (v for v in dict.fromkeys((*own, *_VALUES)) if v != present)


def _text(value: float, present: object) -> str:
    return f"epsilon {value:g} instead of {present if present is not None else 'the default'}"
