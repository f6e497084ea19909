"""GGUF: the files of llama.cpp and its kin. Metadata, tensor infos, then aligned tensor data.

Listing needs nothing but this package. Tensors whose values are coded in blocks are listed by the
name of their code, with the bytes that they take, and read as float32 through the `gguf` package.
A shape is numpy's, which has GGUF's dimensions in reverse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.atomic import replacing_path
from regraft.errors import CorruptFile, FormatError, MissingShard
from regraft.formats import Sample, TensorSource, _ggml
from regraft.formats._bytes import Mapped, Strided, beginning
from regraft.formats._gguf_header import ALIGNMENT, Header, Info, parse
from regraft.formats._gguf_walk import MAGIC, MAX_TEXT
from regraft.tensors import CODED, Spread, Stored, StoredTensor, TensorInfo, numpy_dtype

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = "gguf"
SUFFIXES = (".gguf",)
WRITES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64")

_ARCHITECTURE = "general.architecture"
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MAX_SHARDS = 4096
_MAX_AXES = 4
# GGML keeps 64 bytes for a name and its end.
_MAX_NAME = 63


class _Gguf(Stored):
    format = "gguf"

    def __init__(self, path: Path, header: Header) -> None:
        self._file = Mapped(path)
        self._big_endian = header.big_endian
        self.tensors = tuple(
            StoredTensor((info.name,), info.shape, info.dtype, _place(info, header.big_endian))
            for info in header.tensors
        )
        self.metadata = {k: v for k, v in header.metadata.items() if k not in (_NUMBER, _TENSORS)}
        self.spread = _spread(path, header.numbers)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        if tensor.dtype not in CODED:
            return self._file.array(tensor.where, slices)
        where = f"{self._file.path.name}, tensor {tensor.path[0]!r}"
        if slices is None:
            blocks = self._file.array(tensor.where)
            return _ggml.dequantized(blocks, tensor.dtype, self._big_endian, where)
        # Blocks lie along the last axis: those that the slice touches are undone, then cut.
        values, width = CODED[tensor.dtype]
        start, stop, _ = slices[-1].indices(tensor.shape[-1])
        first, last = start // values, -(-max(start, stop) // values)
        part = (*slices[:-1], slice(first * width, last * width))
        blocks = self._file.array(tensor.where, part)
        whole = _ggml.dequantized(blocks, tensor.dtype, self._big_endian, where)
        return whole[..., start - first * values : max(start, stop) - first * values]

    def close(self) -> None:
        self._file.close()


def _place(info: Info, big_endian: bool) -> Strided:
    """Where values lie; of coded ones, where the bytes of their blocks lie, row by row."""
    if info.dtype not in CODED:
        shape, dtype = info.shape, info.dtype
    else:
        values, width = CODED[info.dtype]
        shape, dtype = (*info.shape[:-1], info.shape[-1] // values * width), "uint8"
    return Strided(info.offset, info.nbytes, info.offset, shape, None, dtype, big_endian)


def _spread(path: Path, numbers: Mapping[str, int]) -> Spread | None:
    """The files of a checkpoint that was split. Their names are GGUF's own rule."""
    count, number = numbers.get(_COUNT, 1), numbers.get(_NUMBER, 0)
    if count == 1:
        return None
    if not 0 < count <= _MAX_SHARDS or not 0 <= number < count:
        raise CorruptFile(path.name, found=f"shard {number} of {count}, counted from 0")
    wanted = f"-{number + 1:05}-of-{count:05}.gguf"
    named = _NUMBERED.fullmatch(path.name)
    if named is None or not path.name.endswith(wanted):
        raise MissingShard(
            str(path),
            found=f"shard {number + 1} of {count} under another name",
            expected=f"a name that ends with {wanted}, beside the other shards",
            hint="give the file its own name back",
        )
    files = tuple(f"{named[1]}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1))
    return Spread(files, numbers.get(_TENSORS))


def sniff(sample: Sample) -> bool:
    return sample.head.startswith(MAGIC)


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile`, `MissingShard`, `FormatError`."""
    size = path.stat().st_size
    return _Gguf(path, beginning(path, lambda data: parse(data, size, path.name)))


def write(path: Path, tensors: TensorSource, metadata: Mapping[str, str]) -> None:
    """Writes tensors as they are, unquantized, one array at a time; metadata as strings.

    Lost are the keys `split.*`, which speak of other files than the one that is written, and ties:
    each of them is written whole. An architecture that is not told is called `unknown`.

    **Raises** `FormatError` for what GGUF cannot hold: other dtypes than those of `WRITES`, more
    than four axes, names of more than 63 bytes, an alignment that is none, more metadata than is
    read back; `MissingDependency`.
    """
    listed = list(tensors)
    for info, _ in listed:
        _check(path, info)
    length = sum(len(key.encode()) + len(text.encode()) for key, text in metadata.items())
    if length > MAX_TEXT:
        raise FormatError(
            path.name, found=f"{length} bytes of metadata", expected=f"at most {MAX_TEXT}"
        )
    from regraft.values import bits

    gguf = _ggml.library("writing .gguf files")
    with replacing_path(path) as temporary:
        writer = gguf.GGUFWriter(None, "")
        try:
            _add_metadata(path, writer, gguf, metadata)
            for info, _ in listed:
                kind = gguf.GGMLQuantizationType(_ggml.NUMBERS[info.dtype])
                dtype = numpy_dtype(info.dtype)
                writer.add_tensor_info(info.name, info.shape, dtype, info.nbytes, kind)
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for _, get in listed:
                array = get()
                writer.write_tensor_data(
                    bits(array.astype(array.dtype.newbyteorder("<"), copy=False))
                )
        finally:
            writer.close()


def _add_metadata(path: Path, writer: Any, gguf: Any, metadata: Mapping[str, str]) -> None:
    for key, text in {_ARCHITECTURE: "unknown", **metadata}.items():
        if key == ALIGNMENT:
            # Where tensors lie hangs on it, so it must be the number that it is.
            try:
                writer.add_custom_alignment(int(text))
            except ValueError as error:
                raise FormatError(
                    f"{path.name}, {key}", found=text, expected="a power of two"
                ) from error
        elif not key.startswith("split."):
            writer.add_key_value(key, text, gguf.GGUFValueType.STRING)


def _check(path: Path, info: TensorInfo) -> None:
    """**Raises** `FormatError` for a tensor that GGUF cannot hold."""
    where = f"{path.name}, tensor {info.name!r}"
    if info.dtype not in WRITES:
        raise FormatError(
            where,
            found=f"dtype {info.dtype}",
            expected=f"one that GGUF knows: {', '.join(WRITES)}",
            hint="convert it first, or write .safetensors",
        )
    if len(info.shape) > _MAX_AXES:
        raise FormatError(
            where,
            found=f"shape {info.shape}",
            expected=f"at most {_MAX_AXES} axes",
            hint="join axes first, or write .safetensors",
        )
    if len(info.name.encode()) > _MAX_NAME:
        raise FormatError(
            where,
            found=f"a name of {len(info.name.encode())} bytes",
            expected=f"at most {_MAX_NAME}, which is all that GGML keeps of one",
            hint="rename it, or write .safetensors",
        )
