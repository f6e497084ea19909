"""What people do today, each as a small function: arrays of both sides by name in, arrays out.

All get the source's arrays as a person would after the first look: weights of another framework
are transposed to the target's layout and their last name part is translated (`gamma` to `weight`),
which is the start of every such script. Whoever cannot go on raises `Refused`; everything else is
loaded as it is, and outputs decide.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]


class Refused(Exception):
    """The way does not apply, and says so."""


_LEAVES = {
    "kernel": "weight", "gamma": "weight", "scale": "weight", "embeddings": "weight",
    "embedding": "weight", "beta": "bias", "moving_mean": "running_mean", "mean": "running_mean",
    "moving_variance": "running_var", "var": "running_var", "depthwise_kernel": "weight",
    "pointwise_kernel": "weight", "alpha": "weight", "w": "weight", "b": "bias",
}  # fmt: skip
_PREFIXES = re.compile(
    r"^(module|_orig_mod|model|net|network|backbone|encoder|state_dict|student|teacher|ema|"
    r"_fsdp_wrapped_module)\."
)


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _leaf(name: str) -> str:
    leaf = _parts(name)[-1]
    return _LEAVES.get(leaf, leaf)


def _is_torch(arrays: Arrays) -> bool:
    return not any("/" in name or _parts(name)[-1] in _LEAVES for name in arrays)


def _ready(source: Arrays, target: Arrays) -> dict[str, Any]:
    """The source's arrays in the target's layout, by the rule of thumb for kernels."""
    if _is_torch(source) == _is_torch(target):
        return dict(source)
    to_torch = _is_torch(target)
    return {name: _flipped(name, np.asarray(array), to_torch) for name, array in source.items()}


def _flipped(name: str, array: Any, to_torch: bool) -> Any:
    if _leaf(name) != "weight" or array.ndim < 2 or "embed" in name.lower():
        return array
    spatial = array.ndim - 2
    if to_torch:  # k…, i, o → o, i, k…
        return array.transpose(spatial + 1, spatial, *range(spatial))
    return array.transpose(*range(2, array.ndim), 1, 0)


def naive_loop(source: Arrays, target: Arrays) -> Arrays:
    """For each tensor the first one with the same last name part and shape; no further thought."""
    ready = _ready(source, target)
    made: dict[str, Any] = {}
    for name, present in target.items():
        for other, array in ready.items():
            if _leaf(other) == _leaf(name) and array.shape == present.shape:
                made[name] = array
                break
    return made


def prefixes_stripped(source: Arrays, target: Arrays) -> Arrays:
    """Known prefixes removed, then `load_state_dict(strict=False)`, which raises on shapes."""

    def bare(name: str) -> str:
        while _PREFIXES.match(name):
            name = _PREFIXES.sub("", name, count=1)
        return name

    ready = {bare(name): array for name, array in _ready(source, target).items()}
    full = {bare(name): name for name in target}
    both = [name for name in ready if name in full]
    clashes = [name for name in both if ready[name].shape != target[full[name]].shape]
    if clashes:
        raise Refused(f"size mismatch for {clashes[0]}")
    return {full[name]: ready[name] for name in both}


def order_and_shape(source: Arrays, target: Arrays) -> Arrays:
    """For each tensor in turn the next unused one of the same shape; what is left is left."""
    left = dict(_ready(source, target))
    made: dict[str, Any] = {}
    for name, present in target.items():
        found = next((n for n, array in left.items() if array.shape == present.shape), None)
        if found is not None:
            made[name] = left.pop(found)
    return made


def zip_in_order(source: Arrays, target: Arrays) -> Arrays:
    """Both lists side by side, where counts and all shapes agree."""
    ready = {n: a for n, a in _ready(source, target).items() if not _counter(n)}
    wanted = {n: a for n, a in target.items() if not _counter(n)}
    if len(ready) != len(wanted):
        raise Refused(f"{len(ready)} tensors for {len(wanted)}")
    made: dict[str, Any] = {}
    for (name, present), (other, array) in zip(wanted.items(), ready.items(), strict=True):
        if array.shape != present.shape:
            raise Refused(f"{other} {array.shape} for {name} {present.shape}")
        made[name] = array
    return made


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def longest_suffix(source: Arrays, target: Arrays) -> Arrays:
    """For each tensor the one whose name ends alike for longest, of the same shape (TF's and
    detectron2's way of aligning names)."""
    ready = _ready(source, target)
    made: dict[str, Any] = {}
    for name, present in target.items():
        best, longest = None, 0
        for other, array in ready.items():
            shared = _shared_end(_parts(name), _parts(other))
            if array.shape == present.shape and shared > longest:
                best, longest = other, shared
        if best is not None:
            made[name] = ready[best]
    return made


def _shared_end(a: list[str], b: list[str]) -> int:
    a, b = [*a[:-1], _LEAVES.get(a[-1], a[-1])], [*b[:-1], _LEAVES.get(b[-1], b[-1])]
    count = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        count += 1
    return count


def weightbridge(source: Arrays, target: Arrays) -> Arrays:
    """weightbridge 0.0.4 as its README has it, with both formats named where they differ."""
    return _weightbridge(source, target, unmatched=False)


def weightbridge_unmatched(source: Arrays, target: Arrays) -> Arrays:
    """The same, with unmatched tensors allowed on both sides."""
    return _weightbridge(source, target, unmatched=True)


def _weightbridge(source: Arrays, target: Arrays, *, unmatched: bool) -> Arrays:
    import weightbridge as bridge

    formats: dict[str, str] = {}
    if _is_torch(source) != _is_torch(target):
        sides = ("pytorch", "flax") if _is_torch(source) else ("flax", "pytorch")
        formats = dict(zip(("in_format", "out_format"), sides, strict=True))

    def separator(arrays: Arrays) -> str:
        return "/" if any("/" in name for name in arrays) else "."

    wanted = {n: np.asarray(a) for n, a in target.items() if not _counter(n)}
    given = {n: np.asarray(a) for n, a in source.items() if not _counter(n)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = bridge.adapt(
                given,
                wanted,
                in_separator=separator(given),
                out_separator=separator(wanted),
                ignore_unmatched_inputs=unmatched,
                ignore_unmatched_outputs=unmatched,
                **formats,
            )
    except Exception as error:  # it signals failure by ValueError, AssertionError and others
        raise Refused(f"{type(error).__name__}: {error}") from error
    # It keeps the target's own values where nothing was paired: those are no loading.
    return {n: a for n, a in made.items() if a is not wanted[n]}


RIVALS: dict[str, Callable[[Arrays, Arrays], Arrays]] = {
    "naive loop": naive_loop,
    "prefixes stripped, strict=False": prefixes_stripped,
    "zip in order": zip_in_order,
    "order + shape": order_and_shape,
    "longest suffix": longest_suffix,
    "weightbridge": weightbridge,
    "weightbridge, unmatched allowed": weightbridge_unmatched,
}
