"""HDF5 through h5py, read with suspicion: only what is stored inside the file, in sane amounts.

HDF5 can point outside itself (external links, external storage, virtual datasets), load code
(filter plug-ins) and declare arrays that no disk could hold. All of it is refused while listing,
before a value is read. Objects are opened by h5py's low-level calls, which are several times
quicker than `File.visititems` and never follow a link that was not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from regraft.errors import CorruptFile, FormatError, MissingDependency, RegraftError, UnsafeFile
from regraft.formats._hdf5_heaps import check_heaps
from regraft.tensors import DTYPE_BITS, Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.formats import Sample
    from regraft.tensors import Array, Slices

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Attribute of the files that we write: in whose layout they are.
LAYOUT = "regraft.layout"

_MAX_OBJECTS = 1_000_000
_MAX_DEPTH = 64
_MAX_NAMES = 1_000_000
# deflate's own limit; a dataset that claims more than this from its packed bytes is a bomb.
_MAX_RATIO = 1100
_SLACK = 1 << 16
# What h5py's own build of HDF5 brings; any other filter would be looked up as a plug-in.
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_ENTROPY = {1, 6, 32000}


class Dataset(NamedTuple):
    """One array of the file. `address` is its header's place, `offset` that of its values."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    address: int
    offset: int | None


class Group(NamedTuple):
    """One group. `children` are in h5py's order, which is alphabetical."""

    path: str
    address: int
    children: tuple[str, ...]


@contextmanager
def guarded(label: str) -> Generator[None]:
    """Whatever h5py raises on a damaged file becomes a `CorruptFile`."""
    try:
        yield
    except RegraftError:
        raise
    except MemoryError as error:
        raise CorruptFile(label, found="a demand for more memory than there is") from error
    except Exception as error:
        raise CorruptFile(
            label,
            found=f"{error}".splitlines()[0][:300] if str(error) else type(error).__name__,
            expected="a whole HDF5 file",
            hint="the file is cut off or damaged; get it again",
        ) from error


def library() -> Any:
    """h5py. **Raises** `MissingDependency`."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency(
            "h5py", extra="keras", purpose="HDF5 files (.h5, .keras)"
        ) from error
    return h5py


def dialect(sample: Sample) -> str:
    """Which of Keras' HDF5 layouts a file has: `legacy`, `weights`, or `""` for neither.

    A file that cannot be looked into (h5py missing, file cut off) is judged by its name, so that
    one format claims it and can say what is wrong.
    """
    if not sample.head.startswith(SIGNATURE):
        return ""
    by_name = "weights" if sample.path.name.endswith(".weights.h5") else "legacy"
    try:
        import h5py

        with h5py.File(sample.path, "r", locking=False) as file:
            root: Any = file
            if LAYOUT in root.attrs:
                return "weights"
            if any(n in root.attrs for n in ("layer_names", "layer_names0", "model_config")):
                return "legacy"
            if "model_weights" in root or "optimizer_weights" in root:
                return "legacy"
            groups = [str(n) for n in root if root.get(n, getclass=True, getlink=True)]
            marks = {"vars", "layers", "_layer_checkpoint_dependencies"}
            if marks & set(groups) or any(_has_vars(root, name) for name in groups[:1000]):
                return "weights"
            return "weights" if by_name == "weights" else ""
    except Exception:  # missing h5py, or damage in any of h5py's many guises
        return by_name


def _has_vars(root: Any, name: str) -> bool:
    """Whether a group of that name lies in this very file and has a `vars`."""
    link = root.get(name, getlink=True)
    inside = type(link).__name__ == "HardLink" and type(root[name]).__name__ == "Group"
    return inside and "vars" in root[name]


class Hdf5:
    """An open HDF5 file whose every object was checked: `groups` and `datasets` by path.

    Paths have no leading slash; the root group's path is `""`.

    **Raises** `CorruptFile`, `UnsafeFile`, `FormatError`, `MissingDependency`.
    """

    def __init__(self, source: Path | BinaryIO, label: str, size: int) -> None:
        self._h5py = library()
        self.label = label
        self.size = size
        self.groups: dict[str, Group] = {}
        self.datasets: dict[str, Dataset] = {}
        self._claimed = 0
        with guarded(label):
            options = {"locking": False} if isinstance(source, Path) else {}
            self._file = self._h5py.File(source, "r", **options)
        try:
            with guarded(label):
                self._walk()
            self._check_heaps(source)
            with guarded(label):
                self._check_opaque()
        except BaseException:
            self.close()
            raise

    def _check_opaque(self) -> None:
        for path, data in self.datasets.items():
            if data.dtype == "bfloat16" and self._attribute(path, "dtype", 64) != "bfloat16":
                raise FormatError(
                    f"{self.label}, {path!r}",
                    found="opaque values of two bytes",
                    expected="bfloat16, named in the attribute dtype",
                )

    def _check_heaps(self, source: Path | BinaryIO) -> None:
        """Before any attribute is read; values, where they lie in one piece, are passed over."""
        values = [
            (data.offset, (math.prod(data.shape) * DTYPE_BITS[data.dtype] + 7) // 8)
            for data in self.datasets.values()
            if data.offset is not None
        ]
        if isinstance(source, Path):
            with source.open("rb") as file:
                check_heaps(file, self.size, values, self.label)
        else:
            check_heaps(source, self.size, values, self.label)

    def close(self) -> None:
        self._file.close()

    # Listing

    def _walk(self) -> None:
        h5o = self._h5py.h5o
        seen: set[int] = set()
        pending: list[tuple[str, Any]] = [("", h5o.open(self._file.id, b"/"))]
        while pending:
            path, group = pending.pop()
            address = int(h5o.get_info(group).addr)
            if address in seen:
                raise UnsafeFile(
                    f"{self.label}, group {path!r}",
                    found="a group that is its own ancestor or twin",
                )
            seen.add(address)
            if path.count("/") >= _MAX_DEPTH:
                raise CorruptFile(f"{self.label}, group {path!r}", found="groups nested too deep")
            children: list[str] = []
            subgroups: list[tuple[str, Any]] = []
            for raw in list(group):
                name = raw.decode("utf-8", "surrogateescape")
                child = f"{path}/{name}" if path else name
                opened = self._open_link(group, raw, child)
                children.append(name)
                if isinstance(opened, self._h5py.h5g.GroupID):
                    subgroups.append((child, opened))
                elif isinstance(opened, self._h5py.h5d.DatasetID):
                    self.datasets[child] = self._dataset(child, opened)
                if len(self.datasets) + len(self.groups) + len(pending) > _MAX_OBJECTS:
                    raise CorruptFile(self.label, found=f"more than {_MAX_OBJECTS} objects")
            self.groups[path] = Group(path, address, tuple(children))
            pending.extend(reversed(subgroups))

    def _open_link(self, group: Any, raw: bytes, path: str) -> Any:
        kind = group.links.get_info(raw).type
        if kind != self._h5py.h5l.TYPE_HARD:
            what = {
                self._h5py.h5l.TYPE_SOFT: "a soft link",
                self._h5py.h5l.TYPE_EXTERNAL: "a link into another file",
            }.get(kind, "a link of unknown kind")
            raise UnsafeFile(
                f"{self.label}, {path!r}", found=what, expected="data inside the file itself"
            )
        return self._h5py.h5o.open(group, raw)

    def _dataset(self, path: str, handle: Any) -> Dataset:
        where = f"{self.label}, {path!r}"
        plan = handle.get_create_plist()
        h5d = self._h5py.h5d
        layout = plan.get_layout()
        if layout == h5d.VIRTUAL:
            raise UnsafeFile(where, found="a virtual dataset, assembled from other files")
        if plan.get_external_count():
            raise UnsafeFile(where, found="values that lie in another file")
        space = handle.get_space()
        if space.get_simple_extent_type() == self._h5py.h5s.NULL:
            raise CorruptFile(where, found="a dataset without values")
        shape = tuple(int(n) for n in handle.shape)
        dtype = self._dtype(where, handle)
        nbytes = (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8
        self._check_size(where, handle, plan, layout, shape, nbytes)
        offset = handle.get_offset() if layout == h5d.CONTIGUOUS else None
        address = int(self._h5py.h5o.get_info(handle).addr)
        return Dataset(path, shape, dtype, address, offset)

    def _dtype(self, where: str, handle: Any) -> str:
        found = handle.get_type().dtype
        if found.kind == "O" or found.hasobject:
            raise UnsafeFile(where, found="objects or references", expected="numbers")
        # Keras keeps bfloat16 as two opaque bytes and says so in an attribute, looked at later.
        if found.kind == "V" and found.itemsize == 2 and found.fields is None:
            name = "bfloat16"
        else:
            name = found.newbyteorder("=").name
        if name not in DTYPE_BITS:
            raise FormatError(
                where, found=f"values of type {found}", expected="numbers of a tensor's types"
            )
        return name

    def _check_size(
        self, where: str, handle: Any, plan: Any, layout: int, shape: tuple[int, ...], nbytes: int
    ) -> None:
        """Holds the declared shape against the bytes that are there."""
        stored = int(handle.get_storage_size())
        self._claimed += stored
        if self._claimed > self.size:
            raise CorruptFile(
                where, found=f"{self._claimed} bytes of values", expected=f"at most {self.size}"
            )
        codes = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        alien = [code for code in codes if code not in _FILTERS]
        if alien:
            raise UnsafeFile(
                where,
                found=f"filter {alien[0]}, which would be loaded as a plug-in",
                expected=f"one of {', '.join(_FILTERS.values())}",
            )
        ratio = _MAX_RATIO if _ENTROPY & set(codes) else 1
        declared = nbytes
        if layout == self._h5py.h5d.CHUNKED:
            # One chunk is unpacked whole, however little of it is asked for.
            chunk = math.prod(plan.get_chunk()) * handle.get_type().get_size()
            declared = max(nbytes, chunk if nbytes else 0)
        if math.prod(shape) and declared > stored * ratio:
            raise CorruptFile(
                where,
                found=f"shape {shape}: {declared} bytes from {stored} stored ones",
                expected="a shape that its stored bytes can fill",
            )
        if len(shape) > 32 or declared > (stored + _SLACK) * _MAX_RATIO:
            raise CorruptFile(where, found=f"shape {shape}")

    # Attributes

    def text(self, path: str, name: str, limit: int) -> str | None:
        """A string attribute of a group; `None` where there is none."""
        with guarded(self.label):
            value = self._attribute(path, name, limit)
            return None if value is None else _text(value)

    def texts(self, path: str, name: str) -> list[str] | None:
        """A list of strings; also Keras' way of splitting long ones into `name0`, `name1`, …"""
        with guarded(self.label):
            value = self._attribute(path, name, self.size)
            if value is not None:
                return [_text(item) for item in value]
            found: list[str] = []
            for part in range(_MAX_NAMES):
                value = self._attribute(path, f"{name}{part}", self.size)
                if value is None:
                    return found if part else None
                found += [_text(item) for item in value]
            return found

    def _attribute(self, path: str, name: str, limit: int) -> Any:
        attributes = self._file[f"/{path}"].attrs
        if name not in attributes:
            return None
        handle = attributes.get_id(name)
        count = math.prod(handle.shape or ())
        # An empty list has no storage at all, and h5py fails when asked for its size.
        size = handle.get_storage_size() if count else 0
        where = f"{self.label}, attribute {name!r} of {path or '/'!r}"
        if count > _MAX_NAMES or size > min(limit, self.size):
            raise CorruptFile(
                where,
                found=f"{size} bytes in {count} parts",
                expected=f"at most {min(limit, self.size)} bytes",
            )
        value = attributes[name]
        if isinstance(value, (str, bytes)) and len(value) > limit:
            raise CorruptFile(where, found=f"{len(value)} bytes", expected=f"at most {limit}")
        return value

    # Values

    def read(self, path: str, slices: Slices | None = None) -> Array:
        """The values or a part of them, in native byte order and in memory of their own."""
        import numpy as np

        listed = self.datasets[path]
        with guarded(f"{self.label}, {path!r}"):
            data = np.asarray(self._file[f"/{path}"][() if slices is None else slices])
            if listed.dtype == "bfloat16":
                import ml_dtypes

                return data.view(ml_dtypes.bfloat16)
            return data.astype(data.dtype.newbyteorder("="), copy=False)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


class Hdf5Stored(Stored):
    """What the Keras formats hand over; a tensor's `where` is its path in the HDF5 file."""

    framework = "keras"
    separator = "/"

    def __init__(self, name: str, file: Hdf5, tensors: list[StoredTensor]) -> None:
        self.format = name
        self.tensors = tuple(tensors)
        self._file = file

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._file.read(tensor.where, slices)

    def close(self) -> None:
        self._file.close()
