"""Where Orbax keeps arrays: a folder for each, or all of them in one database (OCDBT).

The values are zarr arrays either way and are read through tensorstore. What it is asked to open is
built here from a folder's path and an array's name, never taken from a file.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import CorruptFile, MissingDependency, RegraftError, UnsafeFile
from regraft.formats import _zarr
from regraft.formats._folders import bytes_in
from regraft.formats._zarr import Zarr

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

MANIFEST = "manifest.ocdbt"

# What packed bytes may become: at most so many times the folder's, and small arrays are let be.
_MAX_RATIO = 1100
_SLACK = 64 << 20


@contextmanager
def _guarded(where: str) -> Generator[None]:
    """Whatever tensorstore raises on a damaged store becomes a `CorruptFile`."""
    try:
        yield
    except RegraftError:
        raise
    except Exception as error:
        raise CorruptFile(
            where,
            found=f"{error}".splitlines()[0][:300] if str(error) else type(error).__name__,
            expected="a whole checkpoint",
            hint="a file is cut off, damaged or missing; get the folder again",
        ) from error


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise MissingDependency(
            "tensorstore", extra="jax", purpose="values of Orbax checkpoints"
        ) from error
    return tensorstore


class Store(ABC):
    """The arrays of one folder. `complete`: the writer left out no chunk, whatever its values."""

    def __init__(self, folder: Path, label: str, complete: bool) -> None:
        self.folder = folder.resolve()
        self.label = label
        self.size = bytes_in(folder)
        self._complete = complete
        self._context: Any = None
        self._opened: dict[tuple[str, int], Any] = {}

    @abstractmethod
    def names(self) -> list[tuple[str, int]]:
        """All arrays and their zarr versions."""

    @abstractmethod
    def _texts(self, keys: list[str]) -> Iterator[bytes | None]:
        """The values of small keys; `None` for those that are not there."""

    @abstractmethod
    def _has_chunks(self, name: str) -> bool:
        """Whether there is anything of an array beside its metadata."""

    @abstractmethod
    def _kvstore(self, name: str) -> dict[str, Any]:
        """tensorstore's specification of the place where an array's keys begin."""

    def arrays(
        self, names: Iterable[str], versions: tuple[int, ...]
    ) -> dict[str, tuple[int, Zarr]]:
        """Version and metadata of those arrays that are there, in one of the versions.

        **Raises** `CorruptFile` for names that lead elsewhere, and for shapes that the bytes of
        the folder cannot fill.
        """
        wanted = [self._checked(name) for name in names]
        found: dict[str, tuple[int, Zarr]] = {}
        for version in versions:
            missing = [name for name in wanted if name not in found]
            keys = [f"{name}/{_zarr.FILES[version]}" for name in missing]
            for name, raw in zip(missing, self._texts(keys), strict=True):
                if raw is not None:
                    where = f"{self.label}, array {name!r}"
                    array = _zarr.parse(raw, version, where)
                    self._check_size(name, array, where)
                    found[name] = version, array
        return found

    def _checked(self, name: str) -> str:
        if any(part in ("", ".", "..") for part in name.split("/")) or set(name) & {"\\", "\0"}:
            raise UnsafeFile(
                f"{self.label}, array {name!r}"[:300],
                found="a name that leads elsewhere",
                expected="a name inside the checkpoint",
            )
        return name

    @property
    def _most(self) -> int:
        return max(_SLACK, self.size * _MAX_RATIO)

    def _check_size(self, name: str, array: Zarr, where: str) -> None:
        # An array of which nothing is stored (it is all zeros) may be of any size: it costs none.
        if array.nbytes > self._most and (self._complete or self._has_chunks(name)):
            raise CorruptFile(
                where,
                found=f"shape {array.shape} in chunks of {array.chunk}: {array.nbytes} bytes",
                expected=f"no more than {self._most} from a folder of {self.size}",
            )

    def read(self, name: str, version: int, array: Zarr, slices: Slices | None) -> Array:
        """The values, or the part of them under `slices`."""
        where = f"{self.label}, array {name!r}"
        bounds = slices or (slice(None),) * len(array.shape)
        ranges = [range(n)[part] for n, part in zip(array.shape, bounds, strict=True)]
        part = tuple(slice(r.start, max(r.start, r.stop)) for r in ranges)
        if array.nbytes > self._most:
            return _filled(array, tuple(map(len, ranges)), where)
        with _guarded(where):
            opened = self._opened.get((name, version))
            if opened is None:
                opened = self._open(name, version)
            return (opened[part] if part else opened).read().result()

    def context(self) -> Any:
        """tensorstore's caches for this store alone: what another one read may be out of date."""
        if self._context is None:
            self._context = _tensorstore().Context()
        return self._context

    def _open(self, name: str, version: int) -> Any:
        spec = {
            "driver": "zarr" if version == 2 else "zarr3",
            "kvstore": self._kvstore(name),
            # Else a chunk that was lost would read as zeros.
            "fill_missing_data_reads": not self._complete,
        }
        opened = _tensorstore().open(spec, open=True, read=True, context=self.context()).result()
        self._opened[name, version] = opened
        return opened

    def close(self) -> None:
        self._opened.clear()
        self._context = None


def _filled(array: Zarr, shape: tuple[int, ...], where: str) -> Array:
    """Zeros that take no room."""
    import numpy as np

    from regraft.tensors import numpy_dtype

    if not array.zero:
        raise CorruptFile(where, found=f"{array.nbytes} bytes of one value, which is not stored")
    return np.broadcast_to(np.zeros((), numpy_dtype(array.dtype)), shape)


class FolderStore(Store):
    """A folder for each array."""

    def names(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for version, file in _zarr.FILES.items():
            places = sorted(self.folder.glob(f"*/{file}"))
            found += [(place.parent.name, version) for place in places]
        return found

    def _texts(self, keys: list[str]) -> Iterator[bytes | None]:
        for key in keys:
            try:
                with (self.folder / key).open("rb") as file:
                    yield file.read(_zarr.MAX_BYTES + 1)
            except OSError:  # no such file, or a name that no file can have
                yield None

    def _has_chunks(self, name: str) -> bool:
        own = set(_zarr.FILES.values())
        with os.scandir(self.folder / name) as entries:
            return any(entry.name not in own for entry in entries)

    def _kvstore(self, name: str) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self.folder / name}/"}


class DatabaseStore(Store):
    """All arrays in one OCDBT database, which only tensorstore can read."""

    def __init__(self, folder: Path, label: str, complete: bool) -> None:
        super().__init__(folder, label, complete)
        self._base = {"driver": "file", "path": f"{self.folder}/"}
        self._tensorstore = _tensorstore()
        with _guarded(label):
            spec = {"driver": "ocdbt", "base": self._base}
            self._keys: Any = self._tensorstore.KvStore.open(spec, context=self.context()).result()

    def names(self) -> list[tuple[str, int]]:
        with _guarded(self.label):
            keys = [key.decode() for key in self._keys.list().result()]
        return [
            (key.removesuffix(f"/{file}"), version)
            for version, file in _zarr.FILES.items()
            for key in keys
            if key.endswith(f"/{file}")
        ]

    def _texts(self, keys: list[str]) -> Iterator[bytes | None]:
        with _guarded(self.label):
            # All asked for at once: they lie in few nodes of the tree.
            reads = [self._keys.read(key) for key in keys]
            for read in reads:
                found = read.result()
                yield found.value if found.state == "value" else None

    def _has_chunks(self, name: str) -> bool:
        with _guarded(self.label):
            key_range = self._tensorstore.KvStore.KeyRange(f"{name}/", f"{name}0")
            return len(self._keys.list(key_range).result()) > 1

    def _kvstore(self, name: str) -> dict[str, Any]:
        return {"driver": "ocdbt", "base": self._base, "path": f"{name}/"}

    def close(self) -> None:
        super().close()
        self._keys = None
