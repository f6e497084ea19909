"""A layer scale (a factor per channel on a branch), or another constant factor, is missing.

ConvNeXt, CaiT, BEiT and DINO multiply a block's branch by a learned `gamma`; a port that leaves it
out loads everything else. Also: one too many, and constant factors on a branch. The factor is found
where what is missing is a multiple of a branch's result, the same at all places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from regraft.calls import Rewritten
from regraft.verification.causes._arrays import Array
from regraft.verification.causes._scene import Hypothesis, Scene, in_forward
from regraft.verification.closeness import layouts

_SCALE = re.compile(r"layer_?scale|^ls\d?$|gamma|drop_?path", re.IGNORECASE)
_EXACT = 2e-4
# A factor as small as that is none.
_NOTHING = 1e-6


def propose(scene: Scene) -> Iterable[Hypothesis]:
    site = scene.site
    for path in scene.inner():
        name = path.replace("/", ".").rpartition(".")[2]
        if path and (_SCALE.search(name) or "scale" in scene.modules[path].kind.lower()):
            yield Hypothesis(
                "layer-scale",
                (Rewritten(path, lambda inputs, outputs: [inputs[0], *outputs[1:]]),),
                (path,),
                "no layer scale instead of one",
                f"{in_forward(site.module)}: without {path}",
            )
    if site.expected.shape != site.actual.shape:
        return
    if np.iscomplexobj(site.expected) or np.iscomplexobj(site.actual):
        return
    missing: Array = site.expected.astype(np.float64) - site.actual.astype(np.float64)
    for path, call in scene.children.items():
        for output in call.outputs[:1]:
            # The branch's own layout need not be that of the sum: it may be nearer to another.
            for branch in layouts(output, site.actual.shape):
                if branch.ndim > 1 and not np.iscomplexobj(branch):
                    yield from _of_branch(scene, path, output, missing, branch)


def _of_branch(
    scene: Scene, path: str, output: Array, missing: Array, branch: Array
) -> Iterable[Hypothesis]:
    for axis in dict.fromkeys((branch.ndim - 1, 1)):
        share = _share(missing, branch.astype(np.float64), axis)
        if share is None:
            continue
        # The source scales a branch that the target does not, or the other way round; a branch
        # times nothing is one too many, which is no matter of scale.
        factors = [1 + share]
        if np.all(np.abs(1 - share) > 1e-6):
            factors.append(1 / (1 - share))
        for factor in factors:
            if np.abs(factor).min() > _NOTHING:
                yield _scaled(scene, path, factor, _own_axis(output, factor, axis))


def _own_axis(output: Array, factor: Array, axis: int) -> int:
    """The channels' axis in the branch's own layout."""
    if output.ndim == factor.ndim and output.shape[axis] == factor.size:
        return axis
    return next((a for a in (output.ndim - 1, 1) if output.shape[a] == factor.size), axis)


def _share(missing: Array, branch: Array, axis: int) -> Array | None:
    """By channel, the number s with missing = s × branch, where there is one."""
    others = tuple(i for i in range(branch.ndim) if i != axis)
    size = np.square(branch).sum(others, keepdims=True)
    if not size.all() or missing.size <= 4 * branch.shape[axis]:
        return None
    factor = (missing * branch).sum(others, keepdims=True) / size
    left = np.square(missing - factor * branch).sum()
    if left > _EXACT**2 * np.square(missing).sum():
        return None
    return factor


def _scaled(scene: Scene, path: str, factor: Array, axis: int) -> Hypothesis:
    flat = factor.reshape(-1)
    held = next(
        (
            name
            for name, array in scene.unused().items()
            if array.size == flat.size and np.allclose(array.reshape(-1), flat, rtol=1e-3)
        ),
        None,
    )
    if held is not None:
        array = scene.unused()[held].astype(np.float64)
        factor, said = array.reshape(factor.shape), f"the source's {held}"
    elif np.ptp(flat) < 1e-3 * np.abs(flat).max():
        factor = np.full_like(factor, round(float(flat.mean()), 4))
        said = f"{float(flat.mean()):.4g}"
    else:
        said = "one number a channel"

    def scale(_: list[Array], outputs: list[Array]) -> list[Array]:
        first = outputs[0]
        shape = [1] * first.ndim
        shape[axis if axis < first.ndim else -1] = factor.size if factor.size > 1 else 1
        return [(first * factor.reshape(shape)).astype(first.dtype), *outputs[1:]]

    return Hypothesis(
        "layer-scale", (Rewritten(path, scale),), (scene.site.module,),
        "the branch is scaled" + (", by one number a channel" if flat.size > 1 else ""),
        f"{in_forward(scene.site.module)}: the result of {path} × {said}",
    )  # fmt: skip
