"""Checkpoints: a file, or the shards of one, as a Catalogue over stored bytes.

Which part of a file is opened where it holds several is the rule of `regraft.containers`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from regraft import containers, folders, locations, registry, shards
from regraft.errors import CorruptFile, FormatError
from regraft.folders import Found
from regraft.tensors import Catalogue, Stored, StoredTensor, TensorInfo
from regraft.writing import refill, write

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

__all__ = ["Checkpoint", "content_hash", "open", "write"]

_BLOCK = 8 << 20


class Checkpoint(Catalogue):
    """Stored tensors: a Mapping of name to TensorInfo, read only when asked.

    - `path`, `format`: where from; of a folder of steps, the one that was opened.
    - `container`: the part of the file that was chosen, `""` for its root.
    - `containers`: the parts that could be chosen, with their numbers of tensors.
    - `choice`: how the chosen part was found, and what of it was left out.
    """

    def __init__(self, found: Found, stored: list[Stored], container: str | None) -> None:
        path = found.path
        self.path = stored[0].at or path
        self.format = stored[0].format
        self._stored = stored
        self._stamps = self._stamped()
        self._places: dict[str, tuple[Stored, StoredTensor]] = {}
        listed = [(part, tensor) for part in stored for tensor in part.tensors]
        tree = containers.Tree(tensor.path for _, tensor in listed)
        self.containers = tree.containers()
        self.choice = chosen = (
            containers.chosen(tree)
            if container is None
            else containers.asked(path.name, tree, container)
        )
        names: dict[tuple[str, ...], str] = {}
        infos: list[TensorInfo] = []
        depth, everything = len(chosen.prefix), not (chosen.prefix or chosen.without)
        for place in listed:
            part, tensor = place
            path_in_file = tensor.path
            if not (everything and path_in_file) and not chosen.holds(path_in_file):
                continue
            name = part.separator.join(path_in_file[depth:])
            if name in self._places:
                raise CorruptFile(
                    path.name,
                    found=f"two tensors called {name!r}",
                    expected="names that are unique",
                    hint="choose one part of the file with container=",
                )
            names[path_in_file] = name
            self._places[name] = place
            infos.append(TensorInfo(name, tensor.shape, tensor.dtype, *tensor[4:]))
        ties = (group for part in stored for group in part.ties)
        super().__init__(
            infos,
            framework=stored[0].framework,
            order=stored[0].order,
            ties=[tuple(names[p] for p in g if p in names) for g in ties if _several(g, names)],
            container="/".join(chosen.prefix),
            label=path.name,
            metadata={
                **found.metadata,
                **{k: v for part in stored for k, v in part.metadata.items()},
            },
            notes=[*found.notes, *chosen.notes, *(note for part in stored for note in part.notes)],
            flow=stored[0].flow if len(stored) == 1 else (),
        )

    def read(self, name: str, slices: Slices | None = None) -> Array:
        """The values as a numpy array, or the part under `slices` (one slice per axis, step 1).

        bfloat16 and float8 come as ml_dtypes' types. The array may be a view of the mapped file: it
        holds as long as nobody makes the file shorter, which would end the process when the values
        are touched; copy what must outlive that. (Before each read the file's size is looked at,
        and one that has become shorter is refused.) **Raises** `FormatError` where there is no
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

    def _stamped(self) -> list[tuple[int, int]]:
        """Size and time of the files, as far as they are local."""
        paths = dict.fromkeys([self.path, *(part.at for part in self._stored if part.at)])
        states = [path.stat() for path in paths if locations.is_local(path) and path.exists()]
        return [(state.st_size, state.st_mtime_ns) for state in states]

    @property
    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return self._stamped() != self._stamps

    def refill(
        self,
        path: str | os.PathLike[str],
        tensors: Iterable[tuple[TensorInfo, Callable[[], Array]]],
        *,
        force: bool = False,
    ) -> Path | None:
        """Writes a copy of this file in which these tensors have other values, where its format is
        one that is filled in (Keras' `.h5`, whose architecture stays) and no writer answers to the
        path's ending; `None` elsewhere. **Raises** `FormatError` as writing does."""
        where = locations.where(path)
        writer = registry.refiller_of(where, self.format)
        if writer is None or len(self._stored) != 1 or not locations.is_local(self.path):
            return None
        places = {name: place for name, (_, place) in self._places.items()}
        return refill(self.path, places, path, tensors, writer, force=force)

    @cached_property
    def sha256(self) -> str:
        """The file's content hash; reads it whole, once."""
        return content_hash(self.path)


def _several(group: tuple[tuple[str, ...], ...], names: Mapping[tuple[str, ...], str]) -> bool:
    return sum(path in names for path in group) > 1


def open(path: str | os.PathLike[str], *, container: str | None = None) -> Checkpoint:
    """Opens a checkpoint: lists its tensors, reads none, runs none of its code.

    **Arguments:**

    - `path`: a file; an index of shards (`*.index.json`); a folder that is a checkpoint, or that
      holds one by the rule of `regraft.folders`; the prefix of a TensorFlow checkpoint; or the URL
      of any of these (`s3://`, `hf://`, `https://` …), of which no more is fetched than is needed.
    - `container`: the part of the file to open, `"ema"` or `"a/b"`; `""` for all of it; `None`
      lets the rule of `regraft.containers` choose.

    **Raises** `UnknownFormat`, `CorruptFile`, `UnsafeFile`, `MissingShard`, `MissingDependency`,
    or `FormatError` where the path or the container does not exist.
    """
    try:
        found = folders.found(locations.where(path))
    except OSError as error:
        raise FormatError(str(path)[:300], found=f"{error.strerror}", hint="check it") from error
    stored = shards.opened(found.path)
    try:
        return Checkpoint(found, stored, container)
    except BaseException:
        for part in stored:
            part.close()
        raise


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, streamed; over the hashes of the files where tensors are read from several:
    shards, a model and its external data, an index and its data files, all files of a folder."""
    import hashlib

    where = folders.found(locations.where(path)).path
    if where.is_dir():
        files = sorted(p for p in where.rglob("*") if p.is_file())
        parts = [(p.relative_to(where).as_posix(), p) for p in files]
    elif not where.is_file():
        raise FormatError(str(path), found="no such file", hint="check the path")
    else:
        parts = shards.files_of(where)
    if not parts:
        return _file_hash(where)
    digest = hashlib.sha256()
    for name, part in parts:
        digest.update(f"{name}\0{_file_hash(part)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    """sha256 of a file's bytes; a model hub that keeps files by their hash is believed."""
    import hashlib

    known = None if locations.is_local(path) else getattr(path, "sha256", None)
    if known:
        return str(known)
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError as error:
        raise FormatError(str(path), found="no such file", hint="check the path") from error
    return digest.hexdigest()
