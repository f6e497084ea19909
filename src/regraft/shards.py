"""Checkpoints in several files. An index says which tensor is in which shard, or each shard says of
itself that it is one of several (`Stored.spread`); both are held to what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regraft import registry
from regraft.errors import CorruptFile, FormatError, MissingShard
from regraft.formats._beside import inside
from regraft.locations import is_local
from regraft.tensors import Stored

# `model.safetensors.index.json`; of a variant also `model.safetensors.index.fp16.json`.
INDEX = r"(?P<file>.+)\.index(?:\.(?P<variant>\w+))?\.json"
# How writers name one shard of several.
NUMBERED = r"-(\d{5})-of-\d{5}(\.\w+)?$"
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
        data = index.read_bytes()
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        found = msgspec.json.decode(parts["weight_map"], type=dict[str, str])
        json.loads(data, object_pairs_hook=_unique)
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError) as error:
        raise CorruptFile(str(index), found=str(error), expected="a weight_map") from error
    if not found:
        raise CorruptFile(str(index), found="no shards", expected="a weight_map")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Of two equal keys one reader takes the first, the next the last."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("two values of one name")


def opened(path: Path) -> list[Stored]:
    """What a path stands for: one file or folder, the shards of an index, or a shard and the
    others of its kind, in their order. **Raises** `MissingShard`, and as `open` of the formats."""
    if is_index(path):
        promised = weight_map(path)
        names = sorted(set(promised.values()))
        return _all(path, names, lambda shards: _hold_to(path, promised, shards))
    first = registry.format_of(path).open(path)
    if first.spread is None:
        return [first]
    first.close()
    return _all(path, first.spread.files, lambda shards: _hold_together(path, shards))


def files_of(path: Path) -> list[tuple[str, Path]]:
    """Names and paths of the files whose tensors a checkpoint has; empty where it is one file."""
    if is_index(path):
        names = sorted(set(weight_map(path).values()))
    else:
        stored = registry.format_of(path).open(path)
        stored.close()
        names = [path.name, *stored.beside] if stored.beside else []
        names = list(stored.spread.files) if stored.spread else names
    return [(name, inside(path, name)) for name in names]


def _all(
    index: Path, names: Sequence[str], check: Callable[[dict[str, Stored]], None]
) -> list[Stored]:
    """All shards, opened and checked together."""
    paths = [inside(index, shard) for shard in names]
    missing = [shard for shard, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        raise MissingShard(
            str(index),
            found=f"{len(missing)} of {len(names)} shards missing",
            expected="every shard that it names",
            hint="get the missing files",
            problems=missing,
        )
    stored: dict[str, Stored] = {}
    try:
        for name, part in zip(names, _each(paths), strict=True):
            stored[name] = part
        check(stored)
    except BaseException:
        for part in stored.values():
            part.close()
        raise
    return list(stored.values())


def _hold_together(path: Path, shards: dict[str, Stored]) -> None:
    """**Raises** `CorruptFile` where shards do not belong together."""
    spreads = {part.spread for part in shards.values()}
    if len(spreads) > 1:
        raise CorruptFile(
            str(path),
            found="shards that disagree on how many they are",
            expected="shards of one checkpoint",
            hint="a shard belongs to another model; get the files again",
        )
    count = sum(len(part.tensors) for part in shards.values())
    promised = next(part.spread.tensors for part in shards.values() if part.spread)
    if promised is not None and promised != count:
        raise CorruptFile(
            str(path),
            found=f"{count} tensors in all shards together",
            expected=f"{promised}, as the shards say",
            hint="a shard belongs to another model; get the files again",
        )


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
