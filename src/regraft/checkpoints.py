"""Checkpoints: a file, or the shards of one, as a Catalogue over stored bytes.

Which part of a file is opened where it holds several is the rule of `regraft.containers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from regraft import containers, registry, shards
from regraft.errors import CorruptFile, FormatError
from regraft.formats import TensorSource
from regraft.tensors import Catalogue, Stored, StoredTensor, TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices


class Checkpoint(Catalogue):
    """Stored tensors: a Mapping of name to TensorInfo, read only when asked.

    - `path`, `format`: where from.
    - `container`: the part of the file that was chosen, `""` for its root.
    - `containers`: the parts that could be chosen, with their numbers of tensors.
    - `choice`: how the chosen part was found, and what of it was left out.
    """

    def __init__(self, path: Path, stored: list[Stored], container: str | None) -> None:
        self.path = path
        self.format = stored[0].format
        self._stored = stored
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

    - `path`: a file; an index of shards (`*.index.json`); a folder that is a checkpoint, or that
      holds an index or a single checkpoint; the prefix of a TensorFlow checkpoint.
    - `container`: the part of the file to open, `"ema"` or `"a/b"`; `""` for all of it; `None`
      lets the rule of `regraft.containers` choose.

    **Raises** `UnknownFormat`, `CorruptFile`, `UnsafeFile`, `MissingShard`, `MissingDependency`,
    or `FormatError` where the path or the container does not exist.
    """
    where = _found(Path(path))
    stored = (
        shards.opened(where)
        if where.name.endswith(shards.INDEX)
        else [registry.format_of(where).open(where)]
    )
    try:
        return Checkpoint(where, stored, container)
    except BaseException:
        for part in stored:
            part.close()
        raise


def _found(path: Path) -> Path:
    """The file or the folder to open: a folder that no format claims stands for what is in it."""
    if path.is_dir():
        sample = registry.sample_of(path)
        return path if registry.claiming(sample) else shards.index_in(path)
    prefixed = path.parent / f"{path.name}.index"  # TensorFlow's way to name a checkpoint
    return prefixed if not path.exists() and prefixed.is_file() else path


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
    writer = registry.writer_of(where, format)
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


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, streamed; of an index or a folder, over the hashes of its files."""
    import hashlib

    where = _found(Path(path))
    if where.name.endswith(shards.INDEX):
        names = sorted(set(shards.weight_map(where).values()))
        parts = [(name, shards.inside(where, name)) for name in names]
    elif where.is_dir():
        files = sorted(p for p in where.rglob("*") if p.is_file() and not p.is_symlink())
        parts = [(p.relative_to(where).as_posix(), p) for p in files]
    else:
        try:
            with where.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise FormatError(str(path), found="no such file", hint="check the path") from error
    digest = hashlib.sha256()
    for name, part in parts:
        digest.update(f"{name}\0{content_hash(part)}\n".encode())
    return digest.hexdigest()
