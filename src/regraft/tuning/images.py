"""Images as training data, decoded into memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.errors import FormatError, MissingDependency
from regraft.tuning.data import Data

if TYPE_CHECKING:
    from regraft.tensors import Array

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
# Decoded images are held in memory; beyond this a real data pipeline is called for.
_MAX_BYTES = 8 << 30


def folder(path: Path, channels_first: bool, size: tuple[int, ...], gray: bool) -> Data:
    """One subfolder of images for each class, sorted by name."""
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
    x = stacked(((str(file), file) for file, _ in files), channels_first, size, gray, str(path))
    y = np.array([number for _, number in files], np.int64)
    return Data(x, y, classes=tuple(classes))


def stacked(
    named: Iterable[tuple[str, Any]],
    channels_first: bool,
    size: tuple[int, ...],
    gray: bool,
    where: str,
) -> Array:
    """Images (files, or opened by PIL) as one array.

    **Raises** `FormatError` where they are of several sizes, or too many to hold.
    """
    images: list[Array] = []
    total = 0
    for name, given in named:
        images.append(_image(name, given, size, gray))
        total += images[-1].nbytes
        if images[-1].shape != images[0].shape:
            raise FormatError(
                name,
                found=f"an image of {images[-1].shape[:2]}",
                expected=f"{images[0].shape[:2]}, as the first one",
                hint="give a size to resize all of them to (--size 224)",
            )
        if total > _MAX_BYTES:
            raise FormatError(
                where,
                found=f"more than {_MAX_BYTES >> 30} GiB of decoded images",
                hint="give a smaller size, or train with a data loader of your own",
            )
    x = np.stack(images)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if channels_first else x


def _image(name: str, given: Any, size: tuple[int, ...], gray: bool) -> Array:
    """One image as float32 `(h, w, c)` between 0 and 1."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependency("pillow", extra="tune", purpose="reading images") from error
    try:
        with Image.open(given) if isinstance(given, Path) else nullcontext(given) as opened:
            image: Any = opened.convert("L" if gray else "RGB")
            if size:
                image = image.resize((size[-1], size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(image, np.float32) / 255.0
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FormatError(name, found=str(error), expected="an image") from error
    return array[..., None] if gray else array
