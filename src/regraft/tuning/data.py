"""Training data: a folder of images by class, an `.npz` with `x` and `y`, or arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from regraft.errors import FormatError, MissingDependency

if TYPE_CHECKING:
    from regraft.tensors import Array

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
# Decoded images are held in memory; beyond this a real data pipeline is called for.
_MAX_BYTES = 8 << 30
Inputs: TypeAlias = "Array | dict[str, Array]"
Given: TypeAlias = "Data | str | os.PathLike[str] | tuple[Array, Array]"


@dataclass(frozen=True)
class Data:
    """Samples and answers, all in memory.

    - `x`: `(n, …)` in the model's own layout, or several such by the model's keyword.
    - `y`: `(n,)` class numbers, or floats `(n, …)`.
    - `x_val`, `y_val`: held out; `None` for no validation.
    - `classes`: names of the classes, by number; may be empty.
    """

    x: Inputs
    y: Array
    x_val: Inputs | None = None
    y_val: Array | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
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

    - `size`: height and width to resize images to; they must agree where it is empty.
    - `gray`: one channel instead of three.
    """

    size: tuple[int, ...] = ()
    gray: bool = False


def load(given: Given, *, channels_first: bool, reading: Reading | None = None) -> Data:
    """Data from a folder with one subfolder of images per class, an `.npz`, or a pair of arrays.

    **Arguments:**

    - `channels_first`: the layout for images of a folder: `(n, c, h, w)`, or `(n, h, w, c)`.

    Images become float32 between 0 and 1. An `.npz` holds `x` and `y`, and `x_val`, `y_val` where
    a split is given; its arrays are taken as they are. **Raises** `FormatError`.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, tuple):
        return Data(np.asarray(given[0]), np.asarray(given[1]))
    path = Path(given)
    how = reading or Reading()
    if path.is_dir():
        return _folder(path, channels_first, how.size, how.gray)
    if not path.exists():
        raise FormatError(str(path), found="no such file", expected="a folder or an .npz")
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


def _folder(path: Path, channels_first: bool, size: tuple[int, ...], gray: bool) -> Data:
    classes = sorted(part.name for part in path.iterdir() if part.is_dir())
    files = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in _IMAGES
    ]
    if len({number for _, number in files}) < 2:
        raise FormatError(
            str(path),
            found=f"{len(files)} images in {len(classes)} folders",
            expected="at least two subfolders with images, one for each class",
        )
    images: list[Array] = []
    total = 0
    for file, _ in files:
        images.append(_image(file, size, gray))
        total += images[-1].nbytes
        if images[-1].shape != images[0].shape:
            raise FormatError(
                str(file),
                found=f"an image of {images[-1].shape[:2]}",
                expected=f"{images[0].shape[:2]}, as the first one",
                hint="give a size to resize all of them to (--size 224)",
            )
        if total > _MAX_BYTES:
            raise FormatError(
                str(path),
                found=f"more than {_MAX_BYTES >> 30} GiB of decoded images",
                hint="give a smaller size, or train with a data loader of your own",
            )
    x = np.stack(images)
    if channels_first:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    y = np.array([number for _, number in files], np.int64)
    return Data(x, y, classes=tuple(classes))


def _image(file: Path, size: tuple[int, ...], gray: bool) -> Array:
    """One image as float32 `(h, w, c)` between 0 and 1."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependency("pillow", extra="tune", purpose="reading images") from error
    try:
        with Image.open(file) as opened:
            image: Any = opened.convert("L" if gray else "RGB")
            if size:
                image = image.resize((size[-1], size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(image, np.float32) / 255.0
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FormatError(str(file), found=str(error), expected="an image") from error
    return array[..., None] if gray else array
