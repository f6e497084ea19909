"""Checkpoints: a file, or the shards of one, as a Catalogue over stored bytes.

**Which part of a file is opened.** Files nest: weights beside an optimizer, raw weights beside
an average. The rule, used level by level until tensors are reached:

1. parts with an optimizer's or a scheduler's name are never chosen by themselves;
2. of the parts whose name is one of `CONTAINERS`, the first in that order is chosen;
3. if there is no such part, everything but optimizers and the like is taken together.

What was passed over is said in `notes`; `container="ema"` chooses otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from regraft import formats
from regraft.errors import (
    CorruptFile,
    FormatError,
    MissingShard,
    UnknownFormat,
    UnsafeFile,
)
from regraft.formats import Format, Sample, TensorSource
from regraft.tensors import Catalogue, Stored, StoredTensor, TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

# Parts that hold a model's weights, most wanted first.
CONTAINERS = (
    "state_dict", "model_state_dict", "model_state", "model", "model_weights", "module", "net",
    "network", "params", "parameters", "weights", "generator", "ema", "model_ema", "ema_model",
    "ema_state_dict", "state_dict_ema", "params_ema", "ema_params",
)  # fmt: skip
_NEVER = ("optim", "opt_state", "scheduler", "lr_sched", "scaler", "rng", "amp", "callbacks",
          "loops", "hparams", "hyper_parameters")  # fmt: skip
_INDEX = ".index.json"
_MAX_INDEX = 1 << 28


class Checkpoint(Catalogue):
    """Stored tensors: a Mapping of name to TensorInfo, read only when asked.

    - `path`, `format`: where from.
    - `container`: the part of the file that was chosen; `containers`: all parts, with counts.
    """

    def __init__(self, path: Path, stored: list[Stored], container: str | None) -> None:
        self.path = path
        self.format = stored[0].format
        self._stored = stored
        self._places: dict[str, tuple[Stored, StoredTensor]] = {}
        listed = [(part, tensor) for part in stored for tensor in part.tensors]
        self.containers = _containers([tensor.path for _, tensor in listed])
        chosen = _chosen(path, self.containers, container)
        names: dict[tuple[str, ...], str] = {}
        infos: list[TensorInfo] = []
        for part, tensor in listed:
            if not chosen.holds(tensor.path):
                continue
            name = part.separator.join(tensor.path[len(chosen.prefix) :])
            if name in self._places:
                raise CorruptFile(path.name, found=f"two tensors called {name!r}")
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


class _Index(msgspec.Struct):
    """An index of shards, as Hugging Face writes it; the rest of it is not needed."""

    weight_map: dict[str, str]


class _Choice:
    """A part of the file: a path prefix, without the names that are never chosen."""

    def __init__(self, prefix: tuple[str, ...], notes: list[str], everything: bool) -> None:
        self.prefix, self.notes, self._everything = prefix, notes, everything

    def holds(self, path: tuple[str, ...]) -> bool:
        depth = len(self.prefix)
        if path[:depth] != self.prefix or len(path) == depth:
            return False
        return self._everything or len(path) == depth + 1 or not _never(path[depth])


def _never(name: str) -> bool:
    return any(word in name.lower() for word in _NEVER)


def _several(group: tuple[tuple[str, ...], ...], names: Mapping[tuple[str, ...], str]) -> bool:
    return sum(path in names for path in group) > 1


def _containers(paths: list[tuple[str, ...]]) -> dict[str, int]:
    """Parts that hold tensors, at any depth, as `a/b`, with the number of tensors below them."""
    count: Counter[str] = Counter()
    for path in paths:
        for depth in range(1, min(len(path), 6)):
            count["/".join(path[:depth])] += 1
    return dict(count)


def _chosen(path: Path, containers: Mapping[str, int], wanted: str | None) -> _Choice:
    """The part that was asked for, or the one that the rule of this module finds."""
    if wanted is not None:
        wanted = wanted.strip("/")
        if wanted and wanted not in containers:
            raise FormatError(
                f"{path.name}, container {wanted!r}",
                found="no such part",
                expected=", ".join(list(containers)[:20]) or "none: tensors lie at the root",
            )
        return _Choice(tuple(wanted.split("/")) if wanted else (), [], everything=True)
    prefix: tuple[str, ...] = ()
    notes: list[str] = []
    while True:
        base = "".join(f"{part}/" for part in prefix)
        inner = [c[len(base) :] for c in containers if c.startswith(base)]
        inner = [c for c in inner if c and "/" not in c]
        known = sorted((c for c in inner if c in CONTAINERS), key=CONTAINERS.index)
        left_out = [c for c in inner if _never(c)]
        if not known:
            if left_out:
                notes.append(f"left out: {', '.join(base + c for c in left_out)}")
            return _Choice(prefix, notes, everything=False)
        others = [base + c for c in inner if c != known[0]]
        if others:
            notes.append(f"{base}{known[0]} was opened; the file also holds {', '.join(others)}")
        prefix = (*prefix, known[0])


def open(path: str | os.PathLike[str], *, container: str | None = None) -> Checkpoint:
    """Opens a checkpoint: lists its tensors, reads none, runs none of its code.

    **Arguments:**

    - `path`: a file, an index of shards (`*.index.json`) or a folder that holds one.
    - `container`: the part of the file to open, `"ema"` or `"a/b"`; `""` for all of it; `None`
      lets the rule in this module's docstring choose.

    **Raises** `UnknownFormat`, `CorruptFile`, `UnsafeFile`, `MissingShard`, `MissingDependency`,
    or `FormatError` where the path or the container does not exist.
    """
    where = Path(path)
    if where.is_dir():
        where = _index_in(where)
    if not where.is_file():
        raise FormatError(str(path), found="no such file", hint="check the path")
    if where.name.endswith(_INDEX):
        return Checkpoint(where, _shards(where), container)
    return Checkpoint(where, [_open_file(where)], container)


def _open_file(path: Path) -> Stored:
    if path.stat().st_size == 0:
        raise CorruptFile(str(path), found="an empty file", expected="a checkpoint")
    return format_of(path).open(path)


def format_of(path: Path) -> Format:
    """The one format that claims a file. **Raises** `UnknownFormat`."""
    sample = Sample(path)
    for name in _likely_first(path.name):
        found = formats.load(name)
        if found.sniff(sample):
            return found
    for entry in _entry_points():
        found = entry.load()
        if found.sniff(sample):
            return found
    raise UnknownFormat(
        str(path),
        found=f"a file that begins with {sample.head[:8]!r}",
        expected=f"one of {', '.join(formats.names())}",
        hint="a format can be added through the entry point regraft.formats",
    )


# Formats to try first for a file name's ending, so that listing a .pth does not import h5py.
_LIKELY = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".npy": "npy",
    ".keras": "keras_zip",
    ".h5": "keras_h5",
    ".hdf5": "keras_h5",
}


def _likely_first(name: str) -> list[str]:
    first = next((f for ending, f in _LIKELY.items() if name.endswith(ending)), "torch_zip")
    cheap = ("torch_zip", "torch_legacy", "safetensors")
    order = (first, *cheap, *formats.names())
    return list(dict.fromkeys(order))


def _entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points(group="regraft.formats")


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


def _shards(index: Path) -> list[Stored]:
    """The opened shards of an index, held to what the index promises."""
    if index.stat().st_size > _MAX_INDEX:
        raise CorruptFile(str(index), found=f"an index of {index.stat().st_size} bytes")
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except msgspec.DecodeError as error:
        raise CorruptFile(str(index), found=str(error), expected="a weight_map") from error
    stored: list[Stored] = []
    held: dict[str, str] = {}
    for shard in dict.fromkeys(weight_map.values()):
        part = _open_file(_inside(index, shard))
        stored.append(part)
        for tensor in part.tensors:
            name = part.separator.join(tensor.path)
            if name in held:
                raise CorruptFile(
                    str(index), found=f"{name!r} in {held[name]} and in {shard}", expected="once"
                )
            held[name] = shard
    wrong = [n for n, shard in weight_map.items() if held.get(n) != shard]
    if wrong or not stored:
        raise CorruptFile(
            str(index),
            found=f"{len(wrong)} tensors are not where the index says" if stored else "no shards",
            problems=wrong,
            hint="a shard is damaged or belongs to another model",
        )
    return stored


def _inside(index: Path, shard: str) -> Path:
    folder = index.parent.resolve()
    path = folder / shard
    # Neither a name nor a symbolic link may lead out of the folder.
    if ".." in Path(shard).parts or not path.resolve().is_relative_to(folder):
        raise UnsafeFile(str(index), found=f"shard {shard!r}", expected="a file in its folder")
    if not path.is_file():
        raise MissingShard(
            str(index), found=f"no {shard}", expected="every shard", hint="get the missing file"
        )
    return path


def write(
    path: str | os.PathLike[str],
    tensors: TensorSource,
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = False,
) -> None:
    """Writes tensors in the format of the path's ending, whole or not at all.

    **Raises** `UnknownFormat` for an ending without writer, `FormatError` where a file exists
    and `force` is False, or where the format cannot hold a tensor.
    """
    where = Path(path)
    writer = _writer(where)
    if where.exists() and not force:
        raise FormatError(
            str(path), found="a file that exists", hint="choose another name, or force"
        )
    if not where.parent.is_dir():
        raise FormatError(str(path), found="no such folder", hint="make the folder first")
    writer(where, tensors, metadata or {})


def _writer(path: Path) -> Any:
    endings: dict[str, Any] = {}
    for name in formats.names():
        found: Any = formats.load(name)
        endings |= dict.fromkeys(found.SUFFIXES, getattr(found, "write", None))
    writer = endings.get(path.suffix)
    if writer is None:
        raise UnknownFormat(
            str(path),
            found=f"the ending {path.suffix!r}",
            expected=f"one that can be written: {', '.join(sorted(endings))}",
        )
    return writer


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, or of the hashes of an index and its shards; streamed."""
    where = Path(path)
    if where.is_dir():
        where = _index_in(where)
    if not where.name.endswith(_INDEX):
        with where.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(set(msgspec.json.decode(where.read_bytes(), type=_Index).weight_map.values()))
    digest = hashlib.sha256(where.read_bytes())
    for name in names:
        digest.update(content_hash(_inside(where, name)).encode())
    return digest.hexdigest()
