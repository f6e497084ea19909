"""Checkpoints in several files: an index says which tensor is in which shard, and is held to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft import registry
from regraft.errors import CorruptFile, FormatError, MissingShard
from regraft.formats._beside import inside
from regraft.tensors import Stored

INDEX = ".index.json"
_MAX_INDEX = 1 << 28


def index_in(folder: Path) -> Path:
    """The one index, or the one checkpoint file, of a folder."""
    indices = sorted(folder.glob(f"*{INDEX}"))
    preferred = [i for i in indices if "safetensors" in i.name] or indices
    files = preferred or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if len(files) == 1:
        return files[0]
    raise FormatError(
        str(folder),
        found=f"a folder with {len(files)} checkpoints" if files else "a folder without an index",
        expected=f"one *{INDEX}, or one .safetensors or .bin file",
        hint="name the file itself",
    )


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
        for path in paths:
            stored.append(registry.format_of(path).open(path))
        _hold_to(index, promised, dict(zip(names, stored, strict=True)))
    except BaseException:
        for part in stored:
            part.close()
        raise
    return stored


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
