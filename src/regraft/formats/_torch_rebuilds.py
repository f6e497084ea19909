"""Calls of the functions with which PyTorch's pickles make tensors, read as what they describe.

Each of these functions takes a storage and says how a tensor lies in it (`torch/_utils.py`). None
is called: bounds are checked, and the tensor becomes a place in the file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from regraft.errors import CorruptFile
from regraft.formats._bytes import Strided
from regraft.formats._numpy_pickles import HeldArray, held
from regraft.formats._pickle_records import Global, Opaque, Reference
from regraft.formats._torch_derived import Mirrored, Quantized
from regraft.formats._torch_sparse import COMPRESSED_LAYOUTS, Compressed, Coordinates
from regraft.formats._torch_storages import INTEGERS, Storage, Storages, dtype_of, width
from regraft.tensors import CODED

# A parameter of a subclass of a device's tensor … and no more.
_MAX_WRAPPERS = 16
_MAX_AXES = 64
_MAX_NUMBER = 1e300
_REPLICATED, _SHARDED = "Replicate", ("Shard", "_StridedShard")


class Built(NamedTuple):
    """A tensor that is more than a place in the file: its shape and dtype, what reads its values,
    and a remark."""

    shape: tuple[int, ...]
    dtype: str
    place: Any
    remark: str = ""


class LeftOut(NamedTuple):
    """Why a record that makes a tensor gives none that could be read."""

    reason: str


class Parts(NamedTuple):
    """The tensors that a tensor of a wrapper class is made of, by attribute."""

    tensors: dict[str, Any]


Found = Strided | Built | LeftOut | Parts | list[Any] | None


class Rebuilds:
    """Reads the records of one pickle, over its storages."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages

    def __call__(self, path: tuple[str, ...], record: Opaque) -> Found:
        """A plain tensor is its place. A list for an array of objects, `None` where the record
        makes no tensor. **Raises** `CorruptFile`."""
        if record.path in _DENSE:
            return self._dense(path, record.path, record.args)
        function, args, state = self._unwrapped(path, record)
        if function in _DENSE:
            return self._dense(path, function, args)
        return self._rare(path, function, args, state, record)

    def _unwrapped(self, path: tuple[str, ...], record: Opaque) -> tuple[str, Any, Any]:
        """Function and arguments inside calls that only give a tensor a class of its own, and the
        state that they set."""
        function, args, state = record.path, record.args, None
        for _ in range(_MAX_WRAPPERS):
            if function in _PARAMETERS and args and isinstance(args[0], Opaque):
                function, args = args[0].path, args[0].args
            elif function in _TYPED and len(args) > 2 and isinstance(args[2], tuple):
                state = args[3] if len(args) > 3 else None
                function = args[0].path if isinstance(args[0], Global) else ""
                args = args[2]
            else:
                return function, args, state
        raise self._corrupt(path, f"a tensor wrapped {_MAX_WRAPPERS} times")

    def _corrupt(self, path: tuple[str, ...], found: str) -> CorruptFile:
        return CorruptFile(self._where(path), found=found, expected="a tensor of PyTorch's")

    def _where(self, path: tuple[str, ...]) -> str:
        return f"{self._storages.label}, tensor {'.'.join(path)!r}"

    def _dense(self, path: tuple[str, ...], function: str, args: Any) -> Strided | Built | LeftOut:
        """`(storage, offset, shape, strides, …)`, counted in elements."""
        if len(args) < 4 or type(args[0]) is not Reference:
            raise self._corrupt(path, "a tensor without storage, shape or strides")
        storage = self._storages.of(args[0])
        stored, remark, flags = storage.dtype, "", None
        if len(args) > 6:
            typed = function in _WITH_DTYPE
            flags = args[6 + typed] if len(args) > 6 + typed else None
            stored, remark = dtype_of(args[6]) if typed else (stored, "")
            if not stored:
                return LeftOut(remark)
        if stored in CODED:
            return LeftOut(f"dtype {stored} without scale and zero point")
        place = self._place(path, storage, args[1], args[2], args[3], stored)
        if flags:
            mirrored = {"conj", "neg"}
            if not isinstance(flags, dict) or not flags.keys() <= mirrored:
                raise self._corrupt(path, "flags that PyTorch does not have")
            mirror = Mirrored(place, bool(flags.get("conj")), bool(flags.get("neg")))
            return Built(place.shape, stored, mirror, remark)
        return Built(place.shape, stored, place, remark) if remark else place

    def _place(
        self,
        path: tuple[str, ...],
        storage: Storage,
        first: Any,
        shape: Any,
        strides: Any,
        dtype: str,
    ) -> Strided:
        """Where the elements lie, checked."""
        if type(shape) is not tuple or type(strides) is not tuple or type(first) is not int:
            raise self._corrupt(path, "a shape, strides or an offset that are none")
        if len(shape) != len(strides) or len(shape) > _MAX_AXES:  # pyright: ignore[reportUnknownArgumentType]
            raise self._corrupt(path, f"{len(shape)} axes and {len(strides)} strides")  # pyright: ignore[reportUnknownArgumentType]
        count, dense = 1, True
        for n, stride in zip(shape[::-1], strides[::-1], strict=True):  # pyright: ignore[reportUnknownArgumentType]
            if type(n) is not int or type(stride) is not int:
                raise self._corrupt(path, "a shape or strides that are no integers")
            if stride != count and n != 1:
                dense = False
            count *= n
        element = width(dtype)
        offset = storage.start + first * element
        place = Strided(
            storage.start,
            storage.size,
            offset,
            shape,  # pyright: ignore[reportUnknownArgumentType]
            None if dense else strides,  # pyright: ignore[reportUnknownArgumentType]
            dtype,
            self._storages.big_endian,
        )
        if not (dense and first >= 0 < count and (first + count) * element <= storage.size):
            place.check(self._where(path))
        return place

    def _rare(
        self, path: tuple[str, ...], function: str, args: Any, state: Any, record: Opaque
    ) -> Found:
        module, _, name = function.rpartition(".")
        if function in _QUANTIZED:
            return self._quantized(path, args)
        if function in _SPARSE:
            return self._sparse(path, args)
        if function in _FROM_TENSOR or function in _FROM_NUMPY:
            return self._converted(path, args)
        if function == _META:
            return LeftOut("a meta tensor has no values")
        if function == _WRAPPER:
            return self._wrapped(path, args, state)
        if name.startswith("_rebuild") and module.startswith("torch"):
            return LeftOut(f"{name.removeprefix('_rebuild_')} is no dense tensor")
        if name in ("UninitializedParameter", "UninitializedBuffer"):
            return LeftOut("a lazy module's parameter, not initialized yet")
        array = held(record, self._where(path)) if "numpy" in function else None
        if isinstance(array, HeldArray):
            return Built(array.shape, array.dtype, array)
        return LeftOut(array) if isinstance(array, str) else array

    def _quantized(self, path: tuple[str, ...], args: tuple[Any, ...]) -> Built | LeftOut:
        """`(storage, offset, shape, strides, (scheme, scale(s), zero point(s), axis), …)`."""
        if len(args) < 5 or not isinstance(args[0], Reference) or not isinstance(args[4], tuple):
            raise self._corrupt(path, "a quantized tensor without storage or scale")
        storage, (first, shape, strides), scheme = self._storages.of(args[0]), args[1:4], args[4]
        dtype = storage.dtype
        if dtype not in INTEGERS:
            raise self._corrupt(path, f"a quantized tensor over {dtype}")
        if CODED[dtype][0] > 1:  # packed: its bytes lie in one row
            integers = self._place(path, storage, 0, (storage.size,), (1,), "uint8")
            anywhere = Storage("", "", 0, 0, 1 << 60)
            place = self._place(path, anywhere, first, shape, strides, "uint8")
            if first != 0 or place.strides is not None:
                return LeftOut(f"{dtype} in strides")
            if -(-_count(shape) // CODED[dtype][0]) > storage.size:
                raise self._corrupt(path, f"{storage.size} bytes for shape {shape}")
        else:
            integers = self._place(path, storage, first, shape, strides, INTEGERS[dtype])
        match scheme:
            case (Global(name="per_tensor_affine"), float() | int() as scale, int(zero_point)):
                if abs(zero_point) > 1 << 62:
                    raise self._corrupt(path, "a zero point that is no integer of PyTorch's")
                found = Quantized(integers, shape, dtype, float(scale), float(zero_point))
            case (Global(), scales, zero_points, int(axis)) if 0 <= axis < len(shape):
                each = [self._vector(path, part, shape[axis]) for part in (scales, zero_points)]
                found = Quantized(integers, shape, dtype, each[0], each[1], axis)
            case _:
                return LeftOut("a quantization scheme that is not known")
        return Built(shape, dtype, found)

    def _vector(self, path: tuple[str, ...], part: Any, count: int) -> Any:
        """One number for each channel: a tensor, or in old files a list."""
        if isinstance(part, Opaque):
            return self._inner(path, part, "scales or zero points", (count,))
        numbers: list[Any] = part if isinstance(part, list) else []
        if len(numbers) == count and all(
            type(n) in (int, float) and abs(n) < _MAX_NUMBER for n in numbers
        ):
            return tuple(map(float, numbers))
        raise self._corrupt(path, f"scales or zero points that are not {count} numbers")

    def _inner(
        self, path: tuple[str, ...], part: Any, what: str, shape: tuple[int, ...] | None = None
    ) -> Strided:
        """A plain dense tensor that another one is made of."""
        function, args, _ = self._unwrapped(path, part) if isinstance(part, Opaque) else ("", (), 0)
        found = self._dense(path, function, args) if function in _DENSE else None
        if not isinstance(found, Strided):
            raise self._corrupt(path, f"{what} that are no dense tensor")
        if shape is not None and found.shape != shape:
            raise self._corrupt(path, f"{what} of shape {found.shape}")
        return found

    def _sparse(self, path: tuple[str, ...], args: tuple[Any, ...]) -> Built | LeftOut:
        """`(layout, (indices, values, shape, …))`, or two kinds of indices where compressed."""
        layout, data = args if len(args) == 2 else (None, ())
        name = _layout(layout)
        if not isinstance(data, tuple):
            raise self._corrupt(path, "a sparse tensor without its parts")
        parts = 3 if name in COMPRESSED_LAYOUTS else 2
        if name != "sparse_coo" and parts == 2:
            return LeftOut(f"a sparse tensor of layout {name[:50]!r}")
        shape = data[parts] if len(data) > parts else None
        if not isinstance(shape, tuple) or not all(
            type(n) is int and 0 <= n < 1 << 62 for n in shape
        ):
            raise self._corrupt(path, "a sparse tensor without shape")
        places = [self._inner(path, part, "parts of a sparse tensor") for part in data[:parts]]
        place = Coordinates(shape, *places) if parts == 2 else Compressed(shape, name, *places)
        place.check(self._where(path))
        return Built(shape, places[-1].dtype, place)

    def _converted(self, path: tuple[str, ...], args: tuple[Any, ...]) -> Strided | Built | LeftOut:
        """`(tensor or array, dtype, device, …)`, as devices without storages are saved."""
        data, dtype = args[0] if args else None, args[1] if len(args) > 1 else None
        wanted, reason = dtype_of(dtype)
        array = held(data, self._where(path)) if isinstance(data, Opaque) else None
        if isinstance(array, HeldArray):
            found = Built(array.shape, array.dtype, array)
        else:
            found = self._inner(path, data, "a device's tensors")
        if found.dtype != wanted or reason:
            return LeftOut(f"{found.dtype} that is to be converted to {wanted or reason}")
        return found

    def _wrapped(self, path: tuple[str, ...], args: Any, state: Any) -> Strided | LeftOut | Parts:
        """`(class, dtype, shape, …)` and the attributes, tensors among them."""
        cls = args[0].name if args and isinstance(args[0], Global) else ""
        shape = args[2] if len(args) > 2 else None
        attributes: dict[str, Any] = {}
        for part in state if isinstance(state, tuple) else (state,):  # of instance and of slots
            if isinstance(part, dict):
                attributes |= {str(k): v for k, v in part.items() if isinstance(k, str)}
        if cls == "DTensor":
            return self._of_mesh(path, shape, attributes)
        if cls == "ShardedTensor":
            return self._of_shards(path, shape, state)
        tensors = {name: part for name, part in attributes.items() if _makes_tensor(part)}
        if cls == "FakeTensor" or not tensors:
            return LeftOut(f"a {cls[:100] or 'wrapper'} has no values")
        return Parts(tensors)

    def _of_mesh(
        self, path: tuple[str, ...], shape: Any, attributes: dict[str, Any]
    ) -> Strided | LeftOut:
        """A DTensor, read where this process' part of it is the whole."""
        spec = attributes.get("_spec")
        state = spec.state if isinstance(spec, Opaque) else None
        placements = state.get("placements") if isinstance(state, dict) else None
        listed = placements if isinstance(placements, (tuple, list)) else ()
        kinds = [p.path.rpartition(".")[2] for p in listed if isinstance(p, Opaque)]
        local = self._inner(path, attributes.get("_local_tensor"), "a DTensor's parts")
        whole = local.shape == shape and kinds
        if whole and all(kind == _REPLICATED or kind in _SHARDED for kind in kinds):
            return local
        return LeftOut(f"a DTensor ({', '.join(kinds)[:100]}) of which this file has one part")

    def _of_shards(self, path: tuple[str, ...], shape: Any, state: Any) -> Strided | LeftOut:
        """A ShardedTensor, read where this process has its only shard."""
        local = state[0] if isinstance(state, tuple) and state else None
        shards = local if isinstance(local, list) else []
        if len(shards) == 1 and isinstance(shards[0], Opaque):
            held_here = shards[0].state
            for part in held_here if isinstance(held_here, tuple) else (held_here,):
                tensor = part.get("tensor") if isinstance(part, dict) else None
                found = self._inner(path, tensor, "shards") if tensor is not None else None
                if found is not None and found.shape == shape:
                    return found
        return LeftOut(f"a ShardedTensor of which this file has {len(shards)} shards")


_UTILS = "torch._utils._rebuild_"
_DENSE = frozenset({f"{_UTILS}tensor", f"{_UTILS}tensor_v2", f"{_UTILS}tensor_v3"})
_WITH_DTYPE = frozenset({f"{_UTILS}tensor_v3"})
_PARAMETERS = frozenset({f"{_UTILS}parameter", f"{_UTILS}parameter_with_state"})
_TYPED = frozenset(
    f"torch.{module}._rebuild_from_type{version}"
    for module in ("_tensor", "tensor")
    for version in ("", "_v2")
)
_QUANTIZED = frozenset({f"{_UTILS}qtensor"})
_SPARSE = frozenset({f"{_UTILS}sparse_tensor", f"{_UTILS}sparse_csr_tensor"})
_FROM_TENSOR = frozenset({f"{_UTILS}device_tensor_from_cpu_tensor"})
_FROM_NUMPY = frozenset({f"{_UTILS}device_tensor_from_numpy", f"{_UTILS}xla_tensor"})
_META = f"{_UTILS}meta_tensor_no_storage"
_WRAPPER = f"{_UTILS}wrapper_subclass"


def _makes_tensor(part: Any) -> bool:
    return isinstance(part, Opaque) and part.path.rpartition(".")[2].startswith("_rebuild")


def _layout(record: Any) -> str:
    """`sparse_coo` of a layout, which newer files name by a call."""
    if isinstance(record, Opaque) and record.path == "torch.serialization._get_layout":
        text = record.args[0] if record.args else ""
        return text.removeprefix("torch.") if isinstance(text, str) else ""
    return record.name if isinstance(record, Global) else ""


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
