"""Folders of DeepSpeed's checkpoints, whose ZeRO optimizer cuts the weights up among processes.

The weights in full precision are in the optimizer's files, one of each process: flat vectors, of
which each process has a part. The model's file says which parameters lie in them, in which order
and shape; and has the buffers. They are put together as DeepSpeed's own `zero_to_fp32.py` does:

- Stages 1 and 2: the processes' vectors of a group in a row hold its parameters one after another.
- Stage 3: each parameter is cut into equal parts, the last ones padded; a process' vectors in a row
  hold its part of each parameter.

Buffers of floating point are read as float32, and integers as they are. Without optimizer files
the weights are those of the model's file. A folder with a file `latest` stands for the folder that
it names.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.errors import CorruptFile, FormatError, MissingShard
from regraft.formats import Sample
from regraft.formats._assembly import Piece, assembled, is_shape
from regraft.formats._beside import inside, regular
from regraft.formats._bytes import Strided
from regraft.formats._pickle_records import Opaque
from regraft.formats._pickle_walk import collection_paused
from regraft.formats._room import LISTED, Room
from regraft.formats._torch_file import Pickled, pickled
from regraft.formats._torch_rebuilds import Rebuilds
from regraft.formats._torch_storages import width
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_MODEL, _OPTIMIZER = "model_states.pt", "optim_states.pt"
_LATEST, _SCRIPT, _MAX_TAG = "latest", "zero_to_fp32.py", 255
# Weights that another library put beside the folder that `latest` names.
_CONSOLIDATED = re.compile(r".*\.safetensors|.*\.index\.json|pytorch_model.*\.bin")
_PARTITIONED = 3
_FLAT = {False: "single_partition_of_fp32_groups", True: "fp32_flat_groups"}


class _Row:
    """Vectors one after another, each with its file's number; `ends` in elements, from 0 on."""

    def __init__(self, parts: list[tuple[int, Strided]]) -> None:
        self.parts = parts
        self.ends = [0]
        for _, place in parts:
            self.ends.append(self.ends[-1] + place.shape[0])

    def cut(self, offset: int, count: int) -> Iterator[tuple[int, Strided]]:
        """The parts that hold `count` elements from `offset` on, cut to them."""
        index = bisect_right(self.ends, offset) - 1
        while count > 0:
            file, place = self.parts[index]
            skipped = offset - self.ends[index]
            length = min(count, place.shape[0] - skipped)
            if length > 0:
                begin = place.offset + skipped * width(place.dtype)
                yield file, place._replace(offset=begin, shape=(length,))
            offset, count, index = offset + length, count - length, index + 1


class _Flat(NamedTuple):
    """A tensor's elements: `length` from `offset` on of each row, but for padding."""

    elements: int
    dtype: str
    rows: list[_Row]
    offset: int
    length: int

    def pieces(self) -> Iterator[Piece]:
        position = 0
        for row in self.rows:
            for file, place in row.cut(self.offset, min(self.length, self.elements - position)):
                yield Piece((position,), place.shape, (file, place))
                position += place.shape[0]


class _Single(NamedTuple):
    """A buffer or a frozen parameter, whole in the file of that number."""

    file: int
    place: Strided


class _File:
    """One file: its object, and the tensors in it on demand."""

    def __init__(self, path: Path, room: Room) -> None:
        self.path = path
        loaded: Pickled = pickled(path, room)
        self.file = loaded.file
        self.root: dict[Any, Any] = loaded.root if isinstance(loaded.root, dict) else {}
        self._rebuilt = Rebuilds(loaded.storages)

    def place(self, record: Any, name: str) -> Strided:
        """Of a dense tensor. **Raises** `CorruptFile`."""
        found = self._rebuilt((name,), record) if isinstance(record, Opaque) else None
        if not isinstance(found, Strided):
            raise CorruptFile(f"{self.path}, {name}", found="no dense tensor")
        return found

    def flat(self, record: Any, name: str) -> Strided:
        """Of a vector without gaps."""
        place = self.place(record, name)
        if len(place.shape) != 1 or place.strides is not None:
            raise CorruptFile(f"{self.path}, {name}", found=f"shape {place.shape}, not a vector")
        return place


def sniff(sample: Sample) -> bool:
    if any(name.endswith(_MODEL) for name in sample.entries):
        return True
    if _LATEST not in sample.entries or any(map(_CONSOLIDATED.fullmatch, sample.entries)):
        return False
    tag = _tag(sample.path)
    if _SCRIPT in sample.entries:
        return tag is not None
    inner = sample.path / tag if tag and Path(tag).name == tag else None
    return inner is not None and inner.is_dir() and any(
        entry.name.endswith(_MODEL) for entry in inner.iterdir()
    )  # fmt: skip


def _tag(folder: Path) -> str | None:
    """The name in a file `latest`."""
    path = folder / _LATEST
    if not path.is_file() or path.stat().st_size > _MAX_TAG:
        return None
    return path.read_bytes().decode("utf-8", "replace").strip() or None


def open(path: Path) -> Stored:
    """Lists the weights. **Raises** `CorruptFile`, `UnsafeFile`, `MissingShard`, and `FormatError`
    where the weights were also divided in other ways."""
    names = _names(path)
    if not any(name.endswith(_MODEL) for name in names):
        folder = inside(path / _LATEST, _tag(path) or "")
        if not folder.is_dir():
            raise MissingShard(
                str(path), found=f"no folder {folder.name!r}", expected="the one that latest names"
            )
        path, names = folder, _names(folder)
    models = [name for name in names if name.endswith(_MODEL)]
    optimizers = [name for name in names if name.endswith(_OPTIMIZER)]
    if not models:
        raise MissingShard(str(path), found="no file of the model's", expected=f"*{_MODEL}")
    _only_data_parallel(path, models + optimizers)
    with collection_paused():
        if not optimizers:
            return _as_saved(path, models)
        folder = _Folder(path, models, optimizers)
        folder.collect()
    return folder


def _names(folder: Path) -> list[str]:
    """Names of what lies in the folder and is no folder, numbers in them in order."""
    names = (entry.name for entry in folder.iterdir() if not entry.is_dir())
    return sorted(names, key=lambda name: [p.zfill(12) if p.isdigit() else p
                                           for p in re.split(r"(\d+)", name)])  # fmt: skip


def _only_data_parallel(folder: Path, names: list[str]) -> None:
    divided = [
        n for n in names if not re.search(r"mp_rank_0+_", n) or "expert" in n or "layer_" in n
    ]
    if divided:
        raise FormatError(
            str(folder),
            found=f"files of other model-parallel ranks, layers or experts: {divided[0]}",
            expected="weights that are divided by ZeRO alone",
            hint="put them together with DeepSpeed's own tools first (ds_to_universal.py)",
        )


def _as_saved(folder: Path, models: list[str]) -> Stored:
    """The state dict in the model's file, where there are no optimizer files."""
    if len(models) > 1 or models[0].startswith("zero_"):
        raise MissingShard(
            str(folder),
            found="no optimizer files, which have the weights of ZeRO stage 3",
            expected=f"*{_OPTIMIZER}",
        )
    path = regular(folder / _LATEST, models[0])
    loaded = pickled(path)
    state = loaded.root.get("module") if isinstance(loaded.root, dict) else None
    collected = Collected(path.name, loaded.room)
    collected.add(state, loaded.storages, loaded.size)
    return TorchStored("deepspeed_zero", loaded.file, collected)


class _Folder(Stored):
    format = "deepspeed_zero"
    framework = "torch"

    def __init__(self, path: Path, models: list[str], optimizers: list[str]) -> None:
        self._path = path
        paths = {name: regular(path / _LATEST, name) for name in (*models, *optimizers)}
        # All files' objects are held at once.
        self._room = Room(sum(p.stat().st_size for p in paths.values()))
        self._models = [_File(paths[name], self._room) for name in models]
        self._optimizers = [_File(paths[name], self._room) for name in optimizers]
        self._mapped = [file.file for file in (*self._models, *self._optimizers)]
        self._found: dict[str, StoredTensor] = {}

    def collect(self) -> None:
        """Lists buffers, frozen parameters, parameters and those that share another's values."""
        model = self._models[0].root
        stage = self._stage()
        if "buffer_names" not in model or not isinstance(model.get("param_shapes"), list):
            raise CorruptFile(
                str(self._models[0].path), found="no file of a ZeRO checkpoint's model"
            )
        self._buffers(model)
        frozen = model.get("frozen_param_shapes")
        if isinstance(frozen, dict):
            self._frozen(frozen, stage == _PARTITIONED)
        groups = [self._shapes(group) for group in model["param_shapes"]]
        if stage == _PARTITIONED:
            self._equal_parts([item for group in groups for item in group])
        else:
            self._in_a_row(groups)
        self.tensors = tuple(self._found.values())
        self.ties = self._shared(model.get("shared_params"))
        self._models, self._optimizers = [], []

    def _stage(self) -> int:
        """The stage of ZeRO, once all processes' files are there."""
        state = self._state(0)
        stage, count = _integer(state.get("zero_stage")), state.get("partition_count")
        counts: list[Any] = count if isinstance(count, list) and count else [count]
        if stage not in (1, 2, 3) or any(type(n) is not int for n in counts):
            raise CorruptFile(str(self._optimizers[0].path), found="no ZeRO stage or partitions")
        if len(set(counts)) > 1:
            raise FormatError(
                str(self._path), found="groups of parameters that are divided differently (experts)"
            )
        held = len(self._optimizers)
        if counts[0] != held:
            raise (MissingShard if counts[0] > held else CorruptFile)(
                str(self._path),
                found=f"{held} files of the optimizer's",
                expected=f"{counts[0]}, one of each process",
                hint="get the missing files, or remove those of another save",
            )
        return stage

    def _state(self, rank: int) -> dict[Any, Any]:
        state = self._optimizers[rank].root.get("optimizer_state_dict")
        return state if isinstance(state, dict) else {}

    def _vectors(self, partitioned: bool) -> list[list[Strided]]:
        """The flat vectors of each process."""
        found: list[list[Strided]] = []
        for rank, file in enumerate(self._optimizers):
            name = _FLAT[partitioned]
            groups = self._state(rank).get(name)
            if not isinstance(groups, (list, tuple)):
                raise CorruptFile(str(file.path), found=f"no {name}")
            found.append([file.flat(record, f"{name}.{i}") for i, record in enumerate(groups)])
        if len({len(vectors) for vectors in found}) > 1:
            raise CorruptFile(str(self._path), found="processes with other numbers of groups")
        if len({place.dtype for vectors in found for place in vectors}) > 1:
            raise CorruptFile(str(self._path), found="flat vectors of several dtypes")
        return found

    def _shapes(self, group: Any) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of a group's parameters, in order."""
        found: list[tuple[str, tuple[int, ...]]] = []
        for name, shape in group.items() if isinstance(group, dict) else [("", None)]:
            if not isinstance(name, str) or not is_shape(shape):
                where = str(self._models[0].path)
                raise CorruptFile(where, found="parameters without names or shapes")
            found.append((name, shape))
        return found

    def _add(self, name: str, shape: tuple[int, ...], where: _Flat | _Single) -> None:
        dtype = where.dtype if isinstance(where, _Flat) else _read_as(where.place.dtype)
        if name in self._found:
            raise CorruptFile(f"{self._path}, tensor {name!r}", found="listed twice")
        self._room.take(LISTED, f"{self._path}, tensors")
        self._found[name] = StoredTensor((name,), shape, dtype, where)

    def _buffers(self, model: dict[Any, Any]) -> None:
        module, names = model.get("module"), model["buffer_names"]
        for name in names if isinstance(names, (list, tuple)) else ():
            if isinstance(module, dict) and isinstance(name, str) and name in module:
                place = self._models[0].place(module[name], name)
                self._add(name, place.shape, _Single(0, place))

    def _frozen(self, shapes: dict[Any, Any], partitioned: bool) -> None:
        """Parameters without an optimizer's state: whole, or a fragment in each model file."""
        files = self._models if partitioned else self._models[:1]
        if partitioned and len(files) != len(self._optimizers):
            raise MissingShard(
                str(self._path),
                found=f"{len(files)} files of the model's, with frozen parameters in each",
                expected=f"{len(self._optimizers)}",
            )
        for name, shape in self._shapes(shapes):
            fragments: list[tuple[int, Strided]] = []
            for index, file in enumerate(files):
                held = file.root.get("frozen_param_fragments")
                record = held.get(name) if isinstance(held, dict) else None
                fragments.append((index, (file.flat if partitioned else file.place)(record, name)))
            place = fragments[0][1]
            if partitioned:
                self._add(name, shape, self._flat(name, shape, [_Row(fragments)], 0))
            elif place.shape == shape:
                self._add(name, shape, _Single(0, place))
            else:
                where = f"{self._path}, tensor {name!r}"
                raise CorruptFile(where, found=f"shape {place.shape}", expected=f"{shape}")

    def _in_a_row(self, groups: list[list[tuple[str, tuple[int, ...]]]]) -> None:
        """Stages 1 and 2: of each group, the processes' vectors one after another."""
        vectors = self._vectors(partitioned=False)
        if len(groups) != len(vectors[0]):
            raise CorruptFile(
                str(self._path), found=f"{len(vectors[0])} vectors for {len(groups)} groups"
            )
        first = len(self._models)
        for index, group in enumerate(groups):
            row = _Row([(first + rank, held[index]) for rank, held in enumerate(vectors)])
            offset = 0
            for name, shape in group:
                self._add(name, shape, self._flat(name, shape, [row], offset))
                offset += math.prod(shape)
            # Padded to a multiple of twice the number of processes, more or less.
            step = 2 * len(vectors)
            if -(-offset // step) != -(-row.ends[-1] // step):
                raise CorruptFile(
                    f"{self._path}, group {index}",
                    found=f"{row.ends[-1]} elements",
                    expected=f"{offset}, the parameters'",
                )

    def _equal_parts(self, parameters: list[tuple[str, tuple[int, ...]]]) -> None:
        """Stage 3: of each parameter, a part of equal length in each process' vectors."""
        first = len(self._models)
        rows = [
            _Row([(first + rank, place) for place in held])
            for rank, held in enumerate(self._vectors(partitioned=True))
        ]
        offset = 0
        for name, shape in parameters:
            self._add(name, shape, self._flat(name, shape, rows, offset))
            offset += -(-math.prod(shape) // len(rows))
        if any(row.ends[-1] != offset for row in rows):
            raise CorruptFile(
                str(self._path),
                found=f"{rows[0].ends[-1]} elements in a process",
                expected=f"{offset}, its parts of the parameters",
            )

    def _flat(self, name: str, shape: tuple[int, ...], rows: list[_Row], offset: int) -> _Flat:
        """**Raises** `CorruptFile` where the rows end before the tensor does."""
        count = math.prod(shape)
        length = -(-count // len(rows))
        if any(row.ends[-1] < offset + length for row in rows):
            where = f"{self._path}, tensor {name!r}"
            raise CorruptFile(where, found="vectors that end before it does")
        dtype = next((place.dtype for _, place in rows[0].parts), "float32")
        return _Flat(count, dtype, rows, offset, length)

    def _shared(self, shared: Any) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """Adds the names that stand for another's values; returns the groups of ties."""
        groups: dict[str, list[tuple[str, ...]]] = {}
        pairs = list(shared.items()) if isinstance(shared, dict) else []
        for name, other in pairs:
            if isinstance(name, str) and isinstance(other, str) and other in self._found:
                held = self._found[other]
                self._found[name] = held._replace(path=(name,))
                groups.setdefault(other, [held.path]).append((name,))
        self.tensors = tuple(self._found.values())
        return tuple(tuple(dict.fromkeys(group)) for group in groups.values())

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        where = tensor.where
        if isinstance(where, _Single):
            array = self._mapped[where.file].array(where.place, slices)
            return array.astype("float32") if where.place.dtype != tensor.dtype else array
        # The rows that are asked for are one run of the flat elements.
        rows, *inner = tensor.shape or (1,)
        begin, end, _ = (slices[0] if slices else slice(None)).indices(rows)
        length = math.prod(inner)
        window = (slice(begin * length, max(begin, end) * length),)
        flat = assembled((where.elements,), where.dtype, where.pieces(), self._part, window)
        array = flat.reshape((max(begin, end) - begin, *inner) if tensor.shape else ())
        return array[(slice(None), *slices[1:])] if slices else array

    def _part(self, piece: Piece, slices: Slices) -> Array:
        file, place = piece.source
        return self._mapped[file].array(place, slices)

    def close(self) -> None:
        for file in self._mapped:
            file.close()


def _integer(value: Any) -> Any:
    """An integer, or a member of an enumeration of integers, pickled as a call."""
    return value.args[0] if isinstance(value, Opaque) and len(value.args) == 1 else value


def _read_as(dtype: str) -> str:
    return "float32" if dtype.startswith(("float", "bfloat")) else dtype
