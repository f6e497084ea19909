"""PyTorch's zip files (since 1.6), TorchScript archives among them.

A zip with `<top>/data.pkl`, the pickled object, and one stored member `<top>/data/<key>` for each
storage, aligned to 64 bytes, so that tensors are mapped where they lie. TorchScript's have
`constants.pkl` and `code/` beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing
from regraft.errors import CorruptFile
from regraft.formats import Sample, TensorSource, _zip
from regraft.formats._bytes import contiguous
from regraft.formats._pickle_walk import collection_paused
from regraft.formats._torch_archive import Archive
from regraft.formats._torch_storages import STORAGE_OF
from regraft.formats._torch_tensors import Collected, TorchStored
from regraft.tensors import Stored, TensorInfo

if TYPE_CHECKING:
    import zipfile
    from typing import BinaryIO

EXTRA = ""
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

_OBJECT = "data.pkl"
_ALIGNMENT = 64
# Our own record beside PyTorch's members; torch.load passes over it.
_METADATA, _MAX_METADATA = "regraft.json", 64 << 20


def sniff(sample: Sample) -> bool:
    # Files of PyTorch's own begin with the member that tells; else the directory has to be read.
    first = _zip.first_name(sample.head)
    names = (first,) if _is_object(first) else sample.zip_names
    return any(map(_is_object, names))


def _is_object(name: str) -> bool:
    return name == _OBJECT or name.endswith(f"/{_OBJECT}")


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile` and `UnsafeFile`."""
    with collection_paused():
        archive = Archive(path, _OBJECT)
        collected = Collected(path.name, archive.room)
        if archive.holds("constants.pkl"):
            from regraft.formats import _torch_script

            _torch_script.collect(archive, collected)
        else:
            root, size = archive.unpickled(_OBJECT)
            collected.add(root, archive.storages(), size)
            del root
    if archive.holds(_METADATA):
        collected.texts |= _metadata(archive)
    return TorchStored("torch_zip", archive.file, collected)


def _metadata(archive: Archive) -> dict[str, str]:
    import json

    try:
        extra = json.loads(archive.read(_METADATA, _MAX_METADATA))
        return {str(key): str(value) for key, value in extra.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        where = f"{archive.path.name}, member {_METADATA}"
        raise CorruptFile(where, found=str(error)[:300]) from error


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes a flat dict of tensors; `torch.load(weights_only=True)` reads it.

    Metadata goes into a member of its own, which torch passes over and `open` gives back.
    """
    import zipfile  # not on the way to a listing

    listed = list(tensors)
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        top = "archive"
        _add(archive, file, f"{top}/data.pkl", _pickled([info for info, _ in listed]))
        _add(archive, file, f"{top}/byteorder", b"little")
        for index, (_, get) in enumerate(listed):
            array = get()
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _add(archive, file, f"{top}/data/{index}", little.tobytes())
        if metadata:
            import json

            _add(archive, file, f"{top}/{_METADATA}", json.dumps(dict(metadata)).encode())
        _add(archive, file, f"{top}/version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    """A stored member whose bytes begin at a multiple of the alignment, by padding its extra."""
    import zipfile

    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    begin = archive.start_dir if hasattr(archive, "start_dir") else file.tell()
    big = 20 if len(data) >= zipfile.ZIP64_LIMIT else 0  # zipfile adds its own extra then
    begin += 30 + len(name.encode()) + big + 4
    padding = -begin % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(info, data)


def _pickled(infos: list[TensorInfo]) -> bytes:
    """The pickle, protocol 2, of a dict of `_rebuild_tensor_v2` (or v3) calls."""
    out = bytearray(b"\x80\x02}(")
    for index, info in enumerate(infos):
        untyped = info.dtype not in STORAGE_OF
        count = info.nbytes if untyped else info.size
        storage = STORAGE_OF.get(info.dtype, "UntypedStorage")
        out += _value(info.name)
        version = "3" if untyped else "2"
        out += f"ctorch._utils\n_rebuild_tensor_v{version}\n(".encode()
        out += b"(" + _value("storage") + f"ctorch\n{storage}\n".encode()
        out += _value(str(index)) + _value("cpu") + _value(count) + b"tQ"
        out += _value(0) + _value(info.shape) + _value(contiguous(info.shape))
        out += b"\x89ccollections\nOrderedDict\n)R"
        if untyped:
            out += f"ctorch\n{info.dtype}\n".encode()
        out += b"tR"
    return bytes(out + b"u.")


def _value(value: Any) -> bytes:
    """A plain value's opcodes: the body of its own pickle, without header, memo and stop."""
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_value, value)) + b"t"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, str):
        encoded = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    import pickle

    return pickle.dumps(value, 2)[2:-1]
