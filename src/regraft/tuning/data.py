"""Training data: images by class, `.npz`, tables, what the datasets library saved, or arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from regraft.errors import FormatError

if TYPE_CHECKING:
    from regraft.tensors import Array

Inputs: TypeAlias = "Array | dict[str, Array]"
Given: TypeAlias = "Data | str | os.PathLike[str] | tuple[Array, Array]"


@dataclass(frozen=True)
class Data:
    """Samples and answers, all in memory.

    - `x`: `(n, …)` in the model's own layout, or several such by the model's keyword.
    - `y`: `(n,)` class numbers or booleans, or floats `(n, …)`.
    - `x_val`, `y_val`: held out; `None` for no validation.
    - `classes`: names of the classes, by number; may be empty.
    """

    x: Inputs
    y: Array
    x_val: Inputs | None = None
    y_val: Array | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.x_val is None) != (self.y_val is None):
            raise FormatError(
                "training data",
                found="only one of x_val and y_val",
                expected="both, or none for no validation",
            )
        for name in ("y", "y_val"):
            answers = getattr(self, name)
            if answers is not None and answers.dtype.kind == "b" and answers.ndim == 1:
                object.__setattr__(self, name, answers.astype(np.int64))  # two classes
        for x, y, what in ((self.x, self.y, "x"), (self.x_val, self.y_val, "x_val")):
            if x is None or y is None:
                continue
            counts = {len(part) for part in (x.values() if isinstance(x, dict) else [x])}
            if counts != {len(y)} or len(y) == 0:
                told = " or ".join(map(str, sorted(counts)))
                raise FormatError(
                    "training data",
                    found=f"{told} samples in {what} and {len(y)} answers",
                    expected="as many answers as samples, and at least one",
                )
            if y.dtype.kind not in "fiu" or (y.dtype.kind in "iu" and y.ndim > 1):
                raise FormatError(
                    "training data",
                    found=f"answers to {what} of dtype {y.dtype} and shape {y.shape}",
                    expected="class numbers (n,), or floats (n, …) for regression",
                    hint="one-hot rows: give y.argmax(1); to regress on whole numbers: "
                    "y.astype('float32')",
                )
            if self.classification and y.min() < 0:
                raise FormatError(
                    "training data",
                    found=f"class number {y.min()} among the answers to {what}",
                    expected="numbers from 0",
                    hint="for regression give floats",
                )

    @property
    def classification(self) -> bool:
        """Whether answers are class numbers."""
        return self.y.dtype.kind in "iu" and self.y.ndim == 1

    @property
    def count(self) -> int:
        """Number of classes that occur, by the largest class number."""
        parts = [self.y] if self.y_val is None else [self.y, self.y_val]
        return int(max(part.max() for part in parts)) + 1

    def split(self, share: float, seed: int) -> Data:
        """The same data with a share of each class held out, where none is yet.

        A class of one sample stays in training. `share` 0 holds nothing out.
        """
        if self.x_val is not None or share <= 0:
            return self
        generator = np.random.default_rng(seed)
        held: list[int] = []
        groups = [np.flatnonzero(self.y == c) for c in np.unique(self.y)]
        if not self.classification:
            groups = [np.arange(len(self.y))]
        for members in groups:
            count = min(max(1, round(share * len(members))), len(members) - 1)
            held += generator.permutation(members)[:count].tolist()
        mask = np.zeros(len(self.y), bool)
        mask[held] = True
        if not mask.any():
            return self
        kept, out = taken(self.x, ~mask), taken(self.x, mask)
        return Data(kept, self.y[~mask], out, self.y[mask], self.classes)

    def first(self, count: int) -> Inputs:
        """The first so many samples."""
        return taken(self.x, slice(count))


def taken(x: Inputs, index: Any) -> Inputs:
    """Some of the samples."""
    return {k: part[index] for k, part in x.items()} if isinstance(x, dict) else x[index]


@dataclass(frozen=True)
class Reading:
    """How files become arrays.

    **Images:**

    - `size`: height and width to resize images to; they must agree where it is empty.
    - `gray`: one channel instead of three.

    **Tables** (`.csv`, `.parquet`, a folder that the datasets library saved):

    - `answer`: the column with the answers. `columns`: those with inputs; all others by default.
    - `regression`: whole numbers among answers are numbers, and not those of classes.
    - `tokenizer`: a folder with a tokenizer of transformers, for one column of text; the model then
      gets `input_ids` and `attention_mask`, of at most `length` tokens (0: as the longest).
    - `rows`: `module:callable`, or the function itself: makes of each row, a dict by column, an
      array or a dict of arrays by the model's keyword; every row of the same shape.
    """

    size: tuple[int, ...] = ()
    gray: bool = False
    answer: str = "label"
    columns: tuple[str, ...] = ()
    regression: bool = False
    tokenizer: str = ""
    length: int = 0
    rows: str | Callable[[dict[str, Any]], Any] = ""


def load(given: Given, *, channels_first: bool, reading: Reading | None = None) -> Data:
    """Data from files or arrays.

    **Arguments:**

    - `given`: a folder with one subfolder of images per class; an `.npz` with `x` and `y`, and
      `x_val`, `y_val` where a split is given, taken as they are; a table; a folder that the
      datasets library saved, whose split named `validation` or `test` is held out; `(x, y)`.
    - `channels_first`: the layout for images: `(n, c, h, w)`, or `(n, h, w, c)`.

    Images become float32 between 0 and 1. **Raises** `FormatError`, `MissingDependency`.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, tuple):
        return Data(np.asarray(given[0]), np.asarray(given[1]))
    from regraft.tuning import images, tables

    path = Path(given)
    how = reading or Reading()
    if tables.saved(path):
        return tables.saved_data(path, how, channels_first)
    if path.is_dir():
        return images.folder(path, channels_first, how.size, how.gray)
    if not path.exists():
        raise FormatError(str(path), found="no such file", expected="a folder, an .npz or a table")
    if path.suffix.lower() in tables.SUFFIXES:
        return tables.table_data(path, how, channels_first)
    return _npz(path)


def _npz(path: Path) -> Data:
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, AttributeError) as error:
        raise FormatError(str(path), found=str(error), expected="an .npz with x and y") from error
    missing = [name for name in ("x", "y") if name not in arrays]
    if missing:
        raise FormatError(
            str(path), found=f"arrays {', '.join(arrays) or 'none'}", expected="arrays x and y"
        )
    return Data(arrays["x"], arrays["y"], arrays.get("x_val"), arrays.get("y_val"))
