"""Checkpoints in several files: an index says which tensor is in which shard, and is held to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regraft import registry
from regraft.errors import CorruptFile, FormatError, MissingShard, UnsafeFile
from regraft.locations import is_local
from regraft.tensors import Stored

# `model.safetensors.index.json`; of a variant also `model.safetensors.index.fp16.json`.
INDEX = r"(?P<file>.+)\.index(?:\.(?P<variant>\w+))?\.json"
_MAX_INDEX = 1 << 28
_AT_ONCE = 8


def is_index(path: Path) -> bool:
    """Whether a file's name says that it tells in which shard each tensor is."""
    return re.fullmatch(INDEX, path.name) is not None


def weight_map(index: Path) -> dict[str, str]:
    """Shard by tensor, as an index promises."""
    if not index.is_file():
        raise FormatError(str(index), found="no such file", hint="check the path")
    size = index.stat().st_size
    if size > _MAX_INDEX:
        raise CorruptFile(str(index), found=f"an index of {size} bytes")
    import msgspec  # not on the way to a single file

    try:
        content = msgspec.json.decode(index.read_bytes(), type=dict[str, Any])
        found = msgspec.convert(content.get("weight_map"), dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFile(str(index), found=str(error), expected="a weight_map") from error
    if not found:
        raise CorruptFile(str(index), found="no shards", expected="a weight_map")
    return found


def opened(index: Path) -> list[Stored]:
    """The opened shards of an index, held to what the index promises."""
    promised = weight_map(index)
    names = sorted(set(promised.values()))
    paths = [inside(index, shard) for shard in names]
    missing = [shard for shard, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        raise MissingShard(
            str(index),
            found=f"{len(missing)} of {len(names)} shards missing",
            expected="every shard that the index names",
            hint="get the missing files",
            problems=missing,
        )
    stored: list[Stored] = []
    try:
        for part in _each(paths):
            stored.append(part)
        _hold_to(index, promised, dict(zip(names, stored, strict=True)))
    except BaseException:
        for part in stored:
            part.close()
        raise
    return stored


def _each(paths: list[Path]) -> Iterator[Stored]:
    """Opens one after another; remote ones a few at a time, since each is a wait for answers."""

    def opened(path: Path) -> Stored:
        return registry.format_of(path).open(path)

    if all(map(is_local, paths)):
        yield from map(opened, paths)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(opened, paths)


def _hold_to(index: Path, promised: dict[str, str], shards: dict[str, Stored]) -> None:
    """**Raises** `CorruptFile` where a tensor is missing, in two shards, or in another one."""
    held: dict[str, str] = {}
    problems: list[str] = []
    for shard, part in shards.items():
        for tensor in part.tensors:
            name = part.separator.join(tensor.path)
            if name in held:
                problems.append(f"{name} is in {held[name]} and in {shard}")
            held[name] = shard
    for name, shard in promised.items():
        if name not in held:
            problems.append(f"{name} is not in {shard}")
        elif held[name] != shard:
            problems.append(f"{name} is in {held[name]}, not in {shard}")
    if problems:
        raise CorruptFile(
            str(index),
            found=f"{len(problems)} tensors that are not where the index says",
            expected="each tensor once, in its shard",
            hint="a shard is damaged or belongs to another model; get the files again",
            problems=problems,
        )


def inside(index: Path, shard: str) -> Path:
    """A shard's path. Neither a name nor a symbolic link may lead out of the index' folder.

    A model hub's cache links index and shards alike into one other folder; that folder, where
    the index itself really lies, is let pass.
    """
    path = index.parent / shard
    folders = {index.parent.resolve(), index.resolve().parent}
    outside = ".." in Path(shard).parts or "\\" in shard or Path(shard).is_absolute()
    if outside or not any(path.resolve().is_relative_to(folder) for folder in folders):
        raise UnsafeFile(
            str(index), found=f"shard {shard!r}", expected="a file in the folder of the index"
        )
    return path
