"""One file per format; the registry finds them by listing this folder.

A format is a module with

- `EXTRA`: the extra of ours that installs the library it needs, `""` for none;
- `SUFFIXES`: file name endings its writer answers to, `()` when it has none;
- `sniff(sample) -> bool`: whether a file or a folder is of this format; exactly one format
  claims each (a folder has an empty `head`, and `entries`);
- `open(path) -> Stored`: lists the tensors, validating all sizes and offsets, reads none;
- `write(path, tensors, metadata)`, optional: writes the whole file under a temporary name and
  renames it, so that a failed write leaves the old file whole. `tensors` is an iterable of
  `(TensorInfo, callable that returns the numpy array)`: one array is held at a time. What is
  written is read back to the bit; what metadata or names lose is told in the docstring;
- `NESTS`, optional, true where the names that are written may begin with a container's path, its
  parts joined with `/`, and are read as lying in that container;
- `WRITES`: the dtypes that the writer can hold, where these are few;
- `refill(base, path, tensors)`, optional, with `REFILLS`, the endings it answers to: for formats
  whose files hold more than tensors (a model's architecture), writes a copy of the file `base` in
  which the given tensors, pairs of what `open` listed and the callable, have other values.

Formats never import one another, save for the machinery of a shared container in a module
whose name starts with an underscore (`_zip`, `_pickle`), which is not a format.
Third parties add formats through the entry point group `regraft.formats`.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from regraft.tensors import Stored, StoredTensor, TensorInfo

if TYPE_CHECKING:
    from regraft.tensors import Array

SNIFFED_BYTES = 4096
# Names of a folder that are looked at; a folder of more is no checkpoint.
_MAX_ENTRIES = 100_000
_ZIP = b"PK\x03\x04"


class Sample:
    """The little of a file or a folder that formats may look at to claim it.

    - `head`: a file's first bytes; empty for a folder.
    - `entries`: names of what lies right in a folder, sorted; empty for a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head = b""
        self.entries: tuple[str, ...] = ()
        if path.is_dir():
            listed = itertools.islice(path.iterdir(), _MAX_ENTRIES)
            self.entries = tuple(sorted(entry.name for entry in listed))
            return
        with path.open("rb") as file:
            self.head = file.read(SNIFFED_BYTES)

    @cached_property
    def zip_names(self) -> Sequence[str]:
        """Names of a zip archive's members; empty for any other file. No more of them are read
        than are looked at: PyTorch's mark is its first member, however many follow."""
        if not self.head.startswith(_ZIP):
            return ()
        from regraft.formats import _zip

        return _Read(_zip.member_names(self.path))

    @property
    def unfinished_zip(self) -> bool:
        """Whether the file begins as a zip archive and has no directory that can be read."""
        return self.head.startswith(_ZIP) and not self.zip_names


class _Read(Sequence[str]):
    """A sequence over an iterator, which is advanced only as far as somebody looks."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._seen: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for position in itertools.count():
            if position == len(self._seen):
                item = next(self._source, None)
                if item is None:
                    return
                self._seen.append(item)
            yield self._seen[position]

    def __contains__(self, item: object) -> bool:
        return any(item == name for name in self)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


class Format(Protocol):
    """The face of a format module; see this package's docstring."""

    __name__: str
    EXTRA: str
    SUFFIXES: tuple[str, ...]

    @staticmethod
    def sniff(sample: Sample) -> bool: ...

    @staticmethod
    def open(path: Path) -> Stored: ...


TensorSource = Iterable[tuple[TensorInfo, "Callable[[], Array]"]]
Write = Callable[[Path, TensorSource, Mapping[str, str]], None]
Refill = Callable[[Path, Path, "Iterable[tuple[StoredTensor, Callable[[], Array]]]"], None]


@cache
def names() -> tuple[str, ...]:
    """Names of the built-in formats, sorted; importing none of them."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(name: str) -> Format:
    """The format module of that name."""
    return importlib.import_module(f"{__name__}.{name}")  # pyright: ignore[reportReturnType]
