"""Checkpoints: a file, or the shards of one, as a Catalogue over stored bytes.

Which part of a file is opened where it holds several is the rule of `regraft.containers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import containers, formats
from regraft.errors import (
    CorruptFile,
    FormatError,
    MissingShard,
    UnknownFormat,
    UnsafeFile,
)
from regraft.formats import Format, Sample, TensorSource, Write
from regraft.tensors import Catalogue, Stored, StoredTensor, TensorInfo

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from regraft.tensors import Array, Slices

_INDEX = ".index.json"
_MAX_INDEX = 1 << 28


class Checkpoint(Catalogue):
    """Stored tensors: a Mapping of name to TensorInfo, read only when asked.

    - `path`, `format`: where from.
    - `container`: the part of the file that was chosen, `""` for its root.
    - `containers`: the parts that could be chosen, with their numbers of tensors.
    """

    def __init__(self, path: Path, stored: list[Stored], container: str | None) -> None:
        self.path = path
        self.format = stored[0].format
        self._stored = stored
        self._places: dict[str, tuple[Stored, StoredTensor]] = {}
        listed = [(part, tensor) for part in stored for tensor in part.tensors]
        tree = containers.Tree(tensor.path for _, tensor in listed)
        self.containers = tree.containers()
        chosen = (
            containers.chosen(tree)
            if container is None
            else containers.asked(path.name, tree, container)
        )
        names: dict[tuple[str, ...], str] = {}
        infos: list[TensorInfo] = []
        for part, tensor in listed:
            if not chosen.holds(tensor.path):
                continue
            name = part.separator.join(tensor.path[len(chosen.prefix) :])
            if name in self._places:
                raise CorruptFile(
                    path.name,
                    found=f"two tensors called {name!r}",
                    expected="names that are unique",
                    hint="choose one part of the file with container=",
                )
            names[tensor.path] = name
            self._places[name] = part, tensor
            infos.append(
                TensorInfo(
                    name, tensor.shape, tensor.dtype, tensor.module, tensor.role, tensor.kind
                )
            )
        ties = (group for part in stored for group in part.ties)
        super().__init__(
            infos,
            framework=stored[0].framework,
            order=stored[0].order,
            ties=[tuple(names[p] for p in g if p in names) for g in ties if _several(g, names)],
            container="/".join(chosen.prefix),
            label=path.name,
            metadata={k: v for part in stored for k, v in part.metadata.items()},
            notes=[*chosen.notes, *(note for part in stored for note in part.notes)],
        )

    def read(self, name: str, slices: Slices | None = None) -> Array:
        """The values as a numpy array, or the part under `slices` (one slice per axis, step 1).

        bfloat16 and float8 come as ml_dtypes' types. **Raises** `FormatError` where there is no
        such tensor, `CorruptFile` where its bytes are missing.
        """
        if name not in self._places:
            raise FormatError(
                f"{self.label}, tensor {name!r}",
                found="no such tensor",
                expected=f"one of {len(self)} names",
                hint=f"list them with `regraft inspect {self.path}`",
            )
        part, tensor = self._places[name]
        return part.read(tensor, slices)

    def close(self) -> None:
        """Releases file handles. Reading afterwards fails."""
        for part in self._stored:
            part.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def sha256(self) -> str:
        """The file's content hash; reads it whole, once."""
        return content_hash(self.path)


def _several(group: tuple[tuple[str, ...], ...], names: Mapping[tuple[str, ...], str]) -> bool:
    return sum(path in names for path in group) > 1


def open(path: str | os.PathLike[str], *, container: str | None = None) -> Checkpoint:
    """Opens a checkpoint: lists its tensors, reads none, runs none of its code.

    **Arguments:**

    - `path`: a file, an index of shards (`*.index.json`) or a folder that holds one.
    - `container`: the part of the file to open, `"ema"` or `"a/b"`; `""` for all of it; `None`
      lets the rule of `regraft.containers` choose.

    **Raises** `UnknownFormat`, `CorruptFile`, `UnsafeFile`, `MissingShard`, `MissingDependency`,
    or `FormatError` where the path or the container does not exist.
    """
    where = Path(path)
    if where.is_dir():
        where = _index_in(where)
    stored = _shards(where) if where.name.endswith(_INDEX) else [_open_file(where)]
    try:
        return Checkpoint(where, stored, container)
    except BaseException:
        for part in stored:
            part.close()
        raise


def _open_file(path: Path) -> Stored:
    return format_of(path).open(path)


def format_of(path: Path) -> Format:
    """The one format that claims a file. **Raises** `UnknownFormat`, `FormatError`."""
    if not path.is_file():
        raise FormatError(
            str(path),
            found="no such file" if not path.exists() else "no file",
            hint="check the path",
        )
    try:
        sample = Sample(path)
    except OSError as error:
        raise FormatError(str(path), found=f"{error.strerror}") from error
    for name in _likely_first(path.name) if sample.head else ():
        found = formats.load(name)
        if found.sniff(sample):
            return found
    others = _entry_points()
    for entry in others if sample.head else ():
        found = entry.load()
        if found.sniff(sample):
            return found
    if sample.unfinished_zip:
        raise CorruptFile(
            str(path),
            found="the beginning of a zip archive without the directory at its end",
            expected="a whole archive, as PyTorch, Keras and NumPy write",
            hint="the file is cut off or damaged; get it again",
        )
    known = [*formats.names(), *sorted(entry.name for entry in others)]
    raise UnknownFormat(
        str(path),
        found=f"a file that begins with {sample.head[:8]!r}" if sample.head else "an empty file",
        expected=f"one of {', '.join(known)}",
        hint="a format can be added through the entry point regraft.formats",
    )


# Formats to try first for a file name's ending, so that listing a .pth imports neither numpy nor
# h5py. The rest follow, since a name may lie.
_LIKELY = {
    ".safetensors": ("safetensors",),
    ".npz": ("npz",),
    ".npy": ("npy",),
    ".keras": ("keras_zip",),
    ".weights.h5": ("keras_weights_h5", "keras_h5"),
    ".h5": ("keras_h5", "keras_weights_h5"),
    ".hdf5": ("keras_h5", "keras_weights_h5"),
}
_CHEAP = ("torch_zip", "torch_legacy", "safetensors")


def _likely_first(name: str) -> list[str]:
    first = next((found for ending, found in _LIKELY.items() if name.endswith(ending)), ())
    known = formats.names()
    return [n for n in dict.fromkeys((*first, *_CHEAP, *known)) if n in known]


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group="regraft.formats"))


def _index_in(folder: Path) -> Path:
    """The one index, or the one checkpoint file, of a folder."""
    indices = sorted(folder.glob(f"*{_INDEX}"))
    preferred = [i for i in indices if "safetensors" in i.name] or indices
    files = preferred or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if len(files) == 1:
        return files[0]
    raise FormatError(
        str(folder),
        found=f"a folder with {len(files)} checkpoints" if files else "a folder without an index",
        expected=f"one *{_INDEX}, or one .safetensors or .bin file",
        hint="name the file itself",
    )


def _weight_map(index: Path) -> dict[str, str]:
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


def _shards(index: Path) -> list[Stored]:
    """The opened shards of an index, held to what the index promises."""
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    paths = [_inside(index, shard) for shard in names]
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
            stored.append(_open_file(path))
        _hold_to(index, weight_map, dict(zip(names, stored, strict=True)))
    except BaseException:
        for part in stored:
            part.close()
        raise
    return stored


def _hold_to(index: Path, weight_map: dict[str, str], shards: dict[str, Stored]) -> None:
    """**Raises** `CorruptFile` where a tensor is missing, in two shards, or in another one."""
    held: dict[str, str] = {}
    problems: list[str] = []
    for shard, part in shards.items():
        for tensor in part.tensors:
            name = part.separator.join(tensor.path)
            if name in held:
                problems.append(f"{name} is in {held[name]} and in {shard}")
            held[name] = shard
    for name, shard in weight_map.items():
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


def _inside(index: Path, shard: str) -> Path:
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


def write(
    path: str | os.PathLike[str],
    tensors: TensorSource,
    metadata: Mapping[str, str] | None = None,
    *,
    format: str | None = None,
    force: bool = False,
) -> None:
    """Writes tensors, whole or not at all, in the named format or that of the path's ending.

    **Raises** `UnknownFormat` for an ending or a format without writer, `FormatError` where a
    file exists and `force` is False, or where the format cannot hold a tensor.
    """
    where = Path(path)
    writer = _writer(where, format)
    if where.is_dir():
        raise FormatError(str(path), found="a folder", expected="a file's name")
    if where.exists() and not force:
        raise FormatError(
            str(path),
            found="a file that exists",
            hint="choose another name, or overwrite it with force=True (--force)",
        )
    if not where.parent.is_dir():
        raise FormatError(str(path), found="no such folder", hint="make the folder first")
    writer(where, tensors, metadata or {})


def _writer(path: Path, wanted: str | None) -> Write:
    """The `write` of a format by name, or of the one with the longest matching ending."""
    writers: dict[str, tuple[tuple[str, ...], Write]] = {}
    entries = {entry.name: entry for entry in _entry_points()}
    for name in dict.fromkeys((*formats.names(), *entries)):
        found: Any = formats.load(name) if name in formats.names() else entries[name].load()
        writer: Write | None = getattr(found, "write", None)
        if writer is not None:
            writers[name] = (tuple(found.SUFFIXES), writer)
    if wanted is not None:
        if wanted in writers:
            return writers[wanted][1]
        raise UnknownFormat(
            str(path),
            found=f"the format {wanted!r}",
            expected=f"one that can be written: {', '.join(writers)}",
        )
    fitting = [
        (len(suffix), writer)
        for suffixes, writer in writers.values()
        for suffix in suffixes
        if path.name.lower().endswith(suffix)
    ]
    if fitting:
        return max(fitting, key=lambda item: item[0])[1]
    endings = sorted(suffix for suffixes, _ in writers.values() for suffix in suffixes)
    raise UnknownFormat(
        str(path),
        found=f"the ending {path.suffix!r}",
        expected=f"one that can be written: {', '.join(endings)}",
        hint="change the ending, or name a format",
    )


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, streamed; of an index or its folder, over the hashes of the shards."""
    import hashlib

    where = Path(path)
    if where.is_dir():
        where = _index_in(where)
    if where.name.endswith(_INDEX):
        digest = hashlib.sha256()
        for name in sorted(set(_weight_map(where).values())):
            digest.update(f"{name}\0{content_hash(_inside(where, name))}\n".encode())
        return digest.hexdigest()
    try:
        with where.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise FormatError(str(path), found="no such file", hint="check the path") from error
