"""Where Keras keeps each variable in its weight files, told along with the tensors.

In such a file a layer is found by the way that leads to it through the model's attributes
(`layers/conv2d_3/vars/0`), which a tensor's name does not tell. A live model knows it, and so does
a file; they tell it as metadata under `KEY`, which other formats carry like any text, so that the
weights can go back into a file that Keras loads.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from regraft.errors import CorruptFile

KEY = "keras.layout"


class Constant(msgspec.Struct, frozen=True):
    """State that a layer keeps and that is no weight, such as a seed: few numbers, told whole."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[int | float, ...]


class Group(msgspec.Struct, frozen=True):
    """What one layer keeps: `variables` are tensors' names or constants, by the key in the group.
    `name` is the layer's own, `None` where it has none."""

    name: str | None
    variables: dict[str, str | Constant] = {}


# Groups by their paths in the file.
Layout = dict[str, Group]


def encode(layout: Layout) -> str:
    return msgspec.json.encode(layout).decode()


def decode(text: str, label: str) -> Layout:
    """**Raises** `CorruptFile` for another text."""
    try:
        return msgspec.json.decode(text, type=Layout)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CorruptFile(
            f"{label}, metadata {KEY!r}", found=str(error)[:300], expected="a layout of Keras'"
        ) from error


def places(layout: Layout) -> Iterator[tuple[str, str | Constant]]:
    """The path of each variable in the file, and which tensor it is."""
    for path, group in layout.items():
        for key, what in group.variables.items():
            yield (f"{path}/{key}" if path else key), what
