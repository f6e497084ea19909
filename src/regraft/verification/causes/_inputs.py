"""Whether a divergence may lie in how the model's inputs are prepared."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.verification.causes._scene import Scene


def images(scene: Scene) -> Iterator[int]:
    """Which of the model's inputs are images or signals: of a floating dtype, with channels."""
    for index, array in enumerate(scene.inputs):
        if array.dtype.kind == "f" and array.ndim > 2:
            yield index


def at_the_input(scene: Scene) -> bool:
    """Whether nothing with weights ran before the site."""
    site = scene.site
    if scene.whole:
        return True
    return site.module == "" and site.place[0] == "input" and scene.first
