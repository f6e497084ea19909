"""Writing tensors to a file, or to several of limited size and an index, whole or not at all.

The names and the index of shards are those that transformers and the hub's libraries read:
`model-00001-of-00003.safetensors` … and `model.safetensors.index.json`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regraft import locations, registry, shards
from regraft.atomic import replacing_all
from regraft.errors import FormatError
from regraft.formats import Refill, TensorSource, Write
from regraft.tensors import StoredTensor, TensorInfo, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array

    Tensors = list[tuple[TensorInfo, Callable[[], Array]]]

# Formats of which an index joins several files.
SHARDED = ("safetensors", "torch_zip")
# What libraries ask of files with tensors in a framework's layout: transformers 4 reads no
# safetensors without this.
_MARKS = {("safetensors", "torch"): {"format": "pt"}}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}  # fmt: skip
_SIZE = r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*"


def write(
    path: str | os.PathLike[str],
    tensors: TensorSource,
    metadata: Mapping[str, str] | None = None,
    *,
    format: str | None = None,
    force: bool = False,
    max_shard: int | str | None = None,
    framework: str = "",
    container: str = "",
) -> Path:
    """Writes tensors, whole or not at all, in the named format or that of the path's ending.

    **Arguments:**

    - `max_shard`: bytes, or a text such as `"5GB"` (10⁹ bytes) or `"5GiB"` (2³⁰). Where the tensors
      take more, they are written to several files of no more than that (one tensor is never
      divided) and an index. The old set is replaced as a whole, or stays as it was.
    - `framework`: whose layout the tensors have, where that is known.
    - `container`: the part of the file that they are to lie in, such as `params`, in formats that
      have parts.

    **Returns** what to open: the file, or the index of its shards.

    **Raises** `UnknownFormat` for an ending or a format without writer, `FormatError` where a
    file exists and `force` is False, or where the format cannot hold a tensor.
    """
    where = locations.where(path)
    if not locations.is_local(where):
        raise FormatError(
            str(where), found="a URL", expected="a file's name", hint="write it here, and upload it"
        )
    writer = registry.writer_of(where, format)
    if where.is_dir():
        raise FormatError(str(path), found="a folder", expected="a file's name")
    if not where.parent.is_dir():
        raise FormatError(str(path), found="no such folder", hint="make the folder first")
    mark = _MARKS.get((_format_of(writer), framework), {})
    inside = f"{container}/" if container and _nests(writer) else ""
    tensors = (
        (info._replace(name=inside + info.name), _as_told(info, get)) for info, get in tensors
    )
    if max_shard is not None:
        return _write_set(where, list(tensors), (mark, metadata or {}), writer, max_shard, force)
    _free([where], force)
    writer(where, tensors, {**mark, **(metadata or {})})
    return where


def refill(
    base: Path,
    places: Mapping[str, StoredTensor],
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[TensorInfo, Callable[[], Array]]],
    writer: Refill,
    *,
    force: bool = False,
) -> Path:
    """Writes a copy of a file in which these tensors have other values; whole or not at all.

    `places`: what the file's format listed, by the tensors' names. **Raises** as `write`.
    """
    where = locations.where(path)
    if not where.parent.is_dir():
        raise FormatError(str(path), found="no such folder", hint="make the folder first")
    _free([where], force)
    writer(base, where, ((places[info.name], _as_told(info, get)) for info, get in tensors))
    return where


def _as_told(info: TensorInfo, get: Callable[[], Array]) -> Callable[[], Array]:
    """Bytes of another dtype or shape than a header tells would be read as something else."""

    def checked() -> Array:
        array = get()
        if array.shape != info.shape or array.dtype.newbyteorder("=") != numpy_dtype(info.dtype):
            raise FormatError(
                info.name,
                found=f"values {array.dtype}{list(array.shape)}",
                expected=f"{info.dtype}{list(info.shape)}, as the tensor is told to be",
                hint="what gives the values must give them as they are described",
            )
        return array

    return checked


def _nests(writer: Write) -> bool:
    return getattr(sys.modules.get(writer.__module__), "NESTS", False)


def _format_of(writer: Write) -> str:
    return writer.__module__.rpartition(".")[2]


def size_of(text: int | str) -> int:
    """Bytes: 5 GB are 5·10⁹, as the hub's libraries have it. **Raises** `FormatError`."""
    found = re.fullmatch(_SIZE, str(text))
    if found is None or found[2].upper() not in _UNITS:
        raise FormatError(
            f"max_shard {text!r}", found="no size", expected="bytes, or a size such as 5GB"
        )
    size = int(float(found[1]) * _UNITS[found[2].upper()])
    if size < 1:
        raise FormatError(f"max_shard {text!r}", found=f"{size} bytes", expected="more than none")
    return size


def _free(paths: Iterable[Path], force: bool) -> None:
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise FormatError(
            str(existing[0]),
            found="a file that exists",
            hint="choose another name, or overwrite it with force=True (--force)",
        )


def _write_set(
    path: Path,
    listed: Tensors,
    told: tuple[Mapping[str, str], Mapping[str, str]],
    writer: Write,
    max_shard: int | str,
    force: bool,
) -> Path:
    """`told` is the mark of each shard, and the metadata of them all, which the first one holds."""
    name = _format_of(writer)
    if name not in SHARDED:
        raise FormatError(
            str(path),
            found=f"shards of the format {name}",
            expected=f"one of {', '.join(SHARDED)}",
            hint="write a single file, without max_shard",
        )
    groups = _groups(listed, size_of(max_shard))
    index = path.with_name(f"{path.name}.index.json")
    names = [path.name] if len(groups) == 1 else _names(path, len(groups))
    _free([path, index, *(path.with_name(n) for n in names)], force)
    # The index of the old set goes first and that of the new one comes last: at no moment is there
    # one that speaks of shards of both.
    old = [index, path, *_shards_of(index, path)]
    with replacing_all(path.parent, old) as folder:
        mark, metadata = told
        for file, group in zip(names, groups, strict=True):
            writer(folder / file, group, {**mark, **metadata})
            metadata = {}
        if len(groups) > 1:
            (folder / index.name).write_bytes(_index(names, groups))
    return index if len(groups) > 1 else path


def _groups(listed: Tensors, limit: int) -> list[Tensors]:
    """Tensors in their order, as many in each group as fit."""
    groups: list[Tensors] = [[]]
    held = 0
    for item in listed:
        size = item[0].nbytes
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += size
    return groups


def _names(path: Path, count: int) -> list[str]:
    return [f"{path.stem}-{n:05d}-of-{count:05d}{path.suffix}" for n in range(1, count + 1)]


def _index(names: list[str], groups: list[Tensors]) -> bytes:
    import json

    infos = [info for group in groups for info, _ in group]
    about = {
        "total_parameters": sum(info.size for info in infos),
        "total_size": sum(info.nbytes for info in infos),
    }
    pairs = zip(names, groups, strict=True)
    where = {info.name: name for name, group in pairs for info, _ in group}
    text = json.dumps({"metadata": about, "weight_map": where}, indent=2, sort_keys=True)
    return f"{text}\n".encode()


def _shards_of(index: Path, path: Path) -> list[Path]:
    """Files of an older set of the same name, which the new one replaces."""
    if not index.is_file():
        return []
    ours = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}" + re.escape(path.suffix))
    try:
        named = set(shards.weight_map(index).values())
    except FormatError:
        return []  # it joined nothing that could be read
    return [path.with_name(name) for name in sorted(named) if ours.fullmatch(name)]
