"""HDF5 read with suspicion: only what is stored inside the file, in sane amounts.

HDF5 can point outside itself (external links, external storage, virtual datasets), load code
(filter plug-ins) and declare arrays that no disk could hold. All of it is refused while listing,
before a value is read. What the structures are is told in `_hdf5_objects`.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft.errors import CorruptFile, FormatError, UnsafeFile
from regraft.formats import _hdf5_chunks as chunked
from regraft.formats import _hdf5_messages as messages
from regraft.formats import _hdf5_objects as objects
from regraft.formats._bytes import Mapped, Strided
from regraft.formats._hdf5_messages import Attribute, Filter, Layout, Type
from regraft.formats._hdf5_objects import SIGNATURE, UNDEFINED, Message, Structure
from regraft.locations import is_local
from regraft.tensors import DTYPE_BITS, Stored, StoredTensor, numpy_dtype

if TYPE_CHECKING:
    from regraft.formats import Sample
    from regraft.tensors import Array, Slices

# Attribute of the files that we write: in whose layout they are.
LAYOUT = "regraft.layout"

_MAX_OBJECTS = 1_000_000
_MAX_DEPTH = 64
_MAX_NAMES = 1_000_000
_SHOWN = 80
# deflate's own limit; a dataset that claims more than this from its packed bytes is a bomb.
_MAX_RATIO = 1100
_SLACK = 1 << 16
# What else raises where bytes are not what they should be.
_MALFORMED = (struct.error, IndexError, ValueError, OverflowError)


class Dataset(NamedTuple):
    """One array of the file. `address` is its header's place, `offset` that of its values."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    address: int
    offset: int | None
    big_endian: bool
    layout: Layout
    filters: tuple[Filter, ...]
    fill: bytes


class Group(NamedTuple):
    """One group. `children` are sorted by name, as HDF5 keeps them."""

    path: str
    address: int
    children: tuple[str, ...]


@contextmanager
def guarded(label: str) -> Generator[None]:
    """Whatever a malformed structure makes of its parsing becomes a `CorruptFile`."""
    try:
        yield
    except _MALFORMED as error:
        raise CorruptFile(
            label,
            found=f"a structure of another form: {error}"[:300],
            expected="a whole HDF5 file",
            hint="the file is cut off or damaged; get it again",
        ) from error


def dialect(sample: Sample) -> str:
    """Which of Keras' HDF5 layouts a file has: `legacy`, `weights`, or `""` for neither.

    A file that cannot be looked into (cut off, damaged, hostile) is judged by its name, so that
    one format claims it and can say what is wrong.
    """
    if not sample.head.startswith(SIGNATURE):
        return ""
    by_name = "weights" if sample.path.name.endswith(".weights.h5") else "legacy"
    label = sample.path.name
    try:
        with sample.path.open("rb") as file, guarded(label):
            structure = Structure(file, sample.path.stat().st_size, label)
            root = structure.messages(structure.root)
            named = {messages.attribute_of(m.data, label).name for m in root
                     if m.kind == objects.ATTRIBUTE}  # fmt: skip
            if LAYOUT in named:
                return "weights"
            if named & {"layer_names", "layer_names0", "model_config"}:
                return "legacy"
            children = structure.links(root, label) or {}
            if children.keys() & {b"model_weights", b"optimizer_weights"}:
                return "legacy"
            if children.keys() & {b"vars", b"layers", b"_layer_checkpoint_dependencies"}:
                return "weights"
            for address in list(children.values())[:1000]:
                if b"vars" in (structure.links(structure.messages(address), label) or ()):
                    return "weights"
            return "weights" if by_name == "weights" else ""
    except (FormatError, OSError):
        return by_name


class Hdf5:
    """An open HDF5 file whose every object was checked: `groups` and `datasets` by path.

    `source` is the file that it is, or whose bytes from `start` on it is; or those bytes.
    Paths have no leading slash; the root group's path is `""`.

    **Raises** `CorruptFile`, `UnsafeFile`, `FormatError`.
    """

    def __init__(
        self, source: Path | bytes | mmap.mmap, label: str, size: int, start: int = 0
    ) -> None:
        self.label = label
        self.size = size
        self.groups: dict[str, Group] = {}
        self.datasets: dict[str, Dataset] = {}
        self._start = start
        self._claimed = 0
        self._attributes: dict[str, list[bytes]] = {}
        self._crowded: set[str] = set()
        self._opaque: list[str] = []
        if isinstance(source, (bytes, mmap.mmap)):
            self._values = Held(source, label)
            self._file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        else:
            self._values = Mapped(source)
            self._file = _mapped(source) if is_local(source) else source.open("rb")
        try:
            with guarded(label):
                self._structure = Structure(self._file, size, label, start)
                self._walk()
                self._check_opaque()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()
        self._values.close()

    # Listing

    def _walk(self) -> None:
        seen: set[int] = set()
        pending = [("", self._structure.root)]
        while pending:
            path, address = pending.pop()
            where = f"{self.label}, {path or '/'!r}"
            with guarded(where):
                header = self._structure.messages(address)
                children = self._structure.links(header, where)
                self._note_attributes(path, header)
                if children is None:
                    if path and any(m.kind == objects.SPACE for m in header):
                        self.datasets[path] = self._dataset(path, where, address, header)
                    continue  # a type that is kept by a name
            if address in seen:
                raise UnsafeFile(where, found="a group that is its own ancestor or twin")
            seen.add(address)
            if path.count("/") >= _MAX_DEPTH:
                raise CorruptFile(where, found="groups nested too deep")
            names = [name.decode("utf-8", "surrogateescape") for name in children]
            self.groups[path] = Group(path, address, tuple(names))
            below = [(f"{path}/{name}" if path else name) for name in names]
            pending.extend(reversed([*zip(below, children.values(), strict=True)]))
            if len(self.datasets) + len(self.groups) + len(pending) > _MAX_OBJECTS:
                raise CorruptFile(self.label, found=f"more than {_MAX_OBJECTS} objects")
        if "" not in self.groups:
            raise CorruptFile(self.label, found="a root that is no group")

    def _note_attributes(self, path: str, header: list[Message]) -> None:
        """Keeps them as they are stored. Those in a heap of the newest layout are only noted."""
        found = [m.data for m in header if m.kind == objects.ATTRIBUTE]
        if found:
            self._attributes[path] = found
        for message in header:
            if message.kind == objects.ATTRIBUTES:
                at = 2 + 2 * (message.data[1] & 1)
                if message.data[at : at + 8] != UNDEFINED.to_bytes(8, "little"):
                    self._crowded.add(path)

    def _dataset(self, path: str, where: str, address: int, header: list[Message]) -> Dataset:
        found = {message.kind: message for message in header}
        if objects.EXTERNAL in found:
            raise UnsafeFile(where, found="values that lie in another file")
        if not {objects.TYPE, objects.LAYOUT} <= found.keys():
            raise CorruptFile(where, found="values without a type or a layout")
        layout = messages.layout_of(found[objects.LAYOUT].data, where)
        if layout.kind == messages.VIRTUAL:
            raise UnsafeFile(where, found="a virtual dataset, assembled from other files")
        shape = messages.shape_of(found[objects.SPACE].data, where)
        if shape is None:
            raise CorruptFile(where, found="a dataset without values")
        kind = self._type(found[objects.TYPE], where)
        if kind.code == messages.OPAQUE:
            self._opaque.append(path)
        filters: tuple[Filter, ...] = ()
        if objects.FILTERS in found and layout.kind == messages.CHUNKED:
            filters = messages.filters_of(found[objects.FILTERS].data)
        self._check_size(where, shape, kind, layout, filters)
        fill = found.get(objects.FILL) or found.get(objects.OLD_FILL)
        contiguous = layout.kind == messages.CONTIGUOUS and layout.address != UNDEFINED
        return Dataset(
            path,
            shape,
            kind.dtype,
            address,
            layout.address if contiguous else None,
            kind.big_endian,
            layout,
            filters,
            messages.fill_of(fill) if fill else b"",
        )

    def _type(self, message: Message, where: str) -> Type:
        if message.flags & objects.SHARED:  # a type that is kept by a name
            kept = self._structure.messages(messages.elsewhere(message, where))
            message = next((m for m in kept if m.kind == objects.TYPE), message)
            if message.flags & objects.SHARED:
                raise CorruptFile(where, found="a type that lies nowhere")
        kind = messages.type_of(message.data, where)
        if kind.code in (messages.REFERENCE, messages.VARIABLE):
            raise UnsafeFile(where, found=kind.words, expected="numbers")
        if kind.dtype not in DTYPE_BITS:
            raise FormatError(where, found=kind.words, expected="numbers of a tensor's types")
        return kind

    def _check_size(
        self, where: str, shape: tuple[int, ...], kind: Type, layout: Layout,
        filters: tuple[Filter, ...],
    ) -> None:  # fmt: skip
        """Holds the declared shape against the bytes that are there."""
        nbytes = math.prod(shape) * kind.size
        alien = [f.code for f in filters if f.code not in chunked.NAMES]
        if alien:
            raise UnsafeFile(
                where,
                found=f"filter {alien[0]}, which would be loaded as a plug-in",
                expected=f"one of {', '.join(chunked.NAMES.values())}",
            )
        declared, stored = nbytes, nbytes
        if layout.kind == messages.CHUNKED:
            # One chunk is unpacked whole, however little of it is asked for.
            declared = max(nbytes, math.prod(layout.chunk) * kind.size if nbytes else 0)
            stored = self._chunked_bytes(where, shape, layout)
        elif layout.kind == messages.COMPACT:
            stored = layout.size
        elif nbytes and (layout.address == UNDEFINED or layout.address + nbytes > self.size):
            stored = 0 if layout.address == UNDEFINED else max(0, self.size - layout.address)
        self._claimed += stored
        if self._claimed > self.size:
            raise CorruptFile(
                where, found=f"{self._claimed} bytes of values", expected=f"at most {self.size}"
            )
        ratio = _MAX_RATIO if chunked.PACKING & {f.code for f in filters} else 1
        if declared > stored * ratio or declared > (stored + _SLACK) * _MAX_RATIO:
            raise CorruptFile(
                where,
                found=f"shape {shape}: {declared} bytes from {stored} stored ones",
                expected="a shape that its stored bytes can fill",
            )

    def _chunked_bytes(self, where: str, shape: tuple[int, ...], layout: Layout) -> int:
        """Stored bytes of all chunks, each of which must lie in the file and in the array."""
        if len(layout.chunk) != len(shape) or 0 in layout.chunk:
            if not layout.address:
                raise FormatError(
                    where,
                    found="chunks indexed as HDF5 does when asked for its newest layout",
                    expected="the layout that HDF5 and h5py write unless asked otherwise",
                    hint="copy the file with h5py's default libver",
                )
            raise CorruptFile(where, found=f"chunks {layout.chunk} of an array {shape}")
        total = 0
        if layout.address == UNDEFINED:
            return total
        for chunk in self._structure.chunks(layout.address, len(shape)):
            inside = all(
                o < n and o % c == 0
                for o, n, c in zip(chunk.offsets, shape, layout.chunk, strict=True)
            )
            if not inside or chunk.address + chunk.size > self.size:
                raise CorruptFile(
                    where, found=f"{chunk.size} bytes of a chunk at offset {chunk.address}"
                )
            total += chunk.size
        return total

    def _check_opaque(self) -> None:
        """Keras keeps bfloat16 as pairs of opaque bytes and says so in an attribute."""
        for path in self._opaque:
            if self.text(path, "dtype", 64) != "bfloat16":
                raise FormatError(
                    f"{self.label}, {path!r}",
                    found="opaque values of two bytes",
                    expected="bfloat16, named in the attribute dtype",
                )

    # Attributes

    def text(self, path: str, name: str, limit: int) -> str | None:
        """A string attribute of a group; `None` where there is none."""
        found = self._texts(path, name, limit)
        if found is not None and len(found) != 1:
            raise CorruptFile(self._where(path, name), found=f"{len(found)} texts", expected="one")
        return None if found is None else found[0]

    def texts(self, path: str, name: str) -> list[str] | None:
        """A list of strings; also Keras' way of splitting long ones into `name0`, `name1`, …"""
        found = self._texts(path, name, self.size)
        if found is not None:
            return found
        parts: list[str] = []
        for part in range(_MAX_NAMES):
            found = self._texts(path, f"{name}{part}", self.size)
            if found is None:
                return parts if part else None
            parts += found
        return parts

    def _where(self, path: str, name: str) -> str:
        return f"{self.label}, attribute {name!r} of {path or '/'!r}"

    def _texts(self, path: str, name: str, limit: int) -> list[str] | None:
        where = self._where(path, name)
        with guarded(where):
            for data in self._attributes.get(path, ()):
                attribute = messages.attribute_of(data, where)
                if attribute.name == name:
                    return self._decoded(attribute, min(limit, self.size), where)
        if path in self._crowded:
            raise FormatError(
                where,
                found="attributes in a heap, as HDF5 writes when asked for its newest layout",
                expected="the layout that HDF5 and h5py write unless asked otherwise",
                hint="copy the file with h5py's default libver",
            )
        return None

    def _decoded(self, attribute: Attribute, limit: int, where: str) -> list[str]:
        kind, shape, data = attribute.type, attribute.shape, attribute.data
        if shape is not None and 0 in shape:
            return []  # NumPy makes an empty list one of floats
        if not kind.text or shape is None:
            raise CorruptFile(where, found=kind.words, expected="text")
        count = math.prod(shape)
        if count * kind.size > len(data) or count > _MAX_NAMES:
            raise CorruptFile(where, found=f"{count} texts in {len(data)} bytes")
        pieces = [data[i * kind.size : (i + 1) * kind.size] for i in range(count)]
        if kind.code == messages.VARIABLE:
            references = [struct.unpack("<IQI", piece) for piece in pieces]
            total = sum(length for length, _, _ in references)
        else:
            references, total = [], count * kind.size
        if total > limit:
            raise CorruptFile(where, found=f"{total} bytes of text", expected=f"at most {limit}")
        if kind.code == messages.VARIABLE:
            pieces = [self._structure.text(a, i, n) if n else b"" for n, a, i in references]
        return [piece.rstrip(b"\0").decode("utf-8", "replace") for piece in pieces]

    # Values

    def read(self, path: str, slices: Slices | None = None) -> Array:
        """The values or a part of them, in native byte order."""
        import numpy as np

        listed = self.datasets[path]
        where = f"{self.label}, {path!r}"
        dtype = numpy_dtype(listed.dtype)
        layout = listed.layout
        if listed.offset is not None:
            nbytes = math.prod(listed.shape) * dtype.itemsize
            begin = self._start + listed.offset
            place = Strided(
                begin, nbytes, begin, listed.shape, None, listed.dtype, listed.big_endian
            )
            return self._values.array(place, slices)
        stored = dtype.newbyteorder(">") if listed.big_endian else dtype
        if layout.kind == messages.CHUNKED and layout.address != UNDEFINED:
            array = chunked.assembled(
                self._structure.chunks(layout.address, len(listed.shape)), listed.shape,
                layout.chunk, stored, listed.filters, listed.fill, slices, self._structure.raw,
                where,
            )  # fmt: skip
        else:  # in the header itself, or nothing
            array = np.frombuffer(layout.compact, stored, math.prod(listed.shape))
            array = array.reshape(listed.shape)
            array = array if slices is None else array[slices]
        return array.astype(dtype, copy=False)


def _mapped(path: Path) -> Any:
    """A stream over the mapped file, which needs no closing where a caller forgets it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Held(Mapped):
    """Bytes that are in memory already, or mapped, as arrays."""

    def __init__(self, data: bytes | mmap.mmap, label: str) -> None:
        self.path = Path(label)
        self.size = len(data)
        self._map: Any = data

    def _size_now(self) -> int:
        return self.size


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
