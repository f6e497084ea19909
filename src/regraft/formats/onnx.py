"""ONNX: the tensors that a graph stores, and what the graph says of them.

The file is walked where it lies: initializers of gigabytes stay in the mapped file, or in the
files of external data beside it, until they are read. The onnx package is not needed.

Listed are all initializers, in the order in which the graph uses them, under their own names; a
name that several graphs use (bodies of If, Loop, Scan) gets the operation's name and attribute in
front, in bodies: `If_3/then_branch/bias`. Of the tensors in Constant nodes those are listed, under
the name of the value, that are a layer's or a matrix of floats: exporters put weights there, too,
among hundreds of axes and bounds. Text tensors are named in a note.

Layer, role and dataflow come from the operations (`_op_graph`). A dense kernel's `module` says how
it lies: `Gemm` for [out, in], `MatMul` for [in, out], whichever operation takes it. Tensors that
only shape the graph (integers, flags, single numbers that a tool named) are constants.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.errors import CorruptFile
from regraft.formats import Sample, _op_graph
from regraft.formats._onnx_model import GRAPH, IR_VERSION, MODEL_FIELDS, Found, Model
from regraft.formats._onnx_tensors import TEXT, External, Sparse, Tensor
from regraft.formats._onnx_values import Files
from regraft.formats._ops import Dialect, Param, Reading
from regraft.formats._protobuf import opened
from regraft.tensors import Stored, StoredTensor

if TYPE_CHECKING:
    from regraft.tensors import Array, Slices

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_MAX_IR = 1000
# The graph's tag, a length, and the tag of what a graph begins with: a node, its name, a tensor.
_CUT_OFF = re.compile(rb"\x3a[\x80-\xff]{0,8}[\x00-\x7f][\x0a\x12\x2a]")
_SHOWN = 20
_KERNEL_BIAS = {1: "kernel", 2: "bias"}
_KERNEL, _SCALE = {1: "kernel"}, {1: "gamma"}
_SCALE_BIAS = {1: "gamma", 2: "bias"}
_RECURRENT = {1: "kernel", 2: "recurrent_kernel", 3: "bias"}
DIALECT = Dialect(
    parameters={
        **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm"), _KERNEL_BIAS),
        **dict.fromkeys(("MatMul", "FusedMatMul", "MatMulInteger", "ConvInteger"), _KERNEL),
        "QLinearConv": {3: "kernel", 8: "bias"},
        "QLinearMatMul": {3: "kernel"},
        "BatchNormalization": {**_SCALE_BIAS, 3: "running_mean", 4: "running_var"},
        **dict.fromkeys(
            ("LayerNormalization", "GroupNormalization", "InstanceNormalization"), _SCALE_BIAS
        ),
        **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), _SCALE),
        "SkipLayerNormalization": {2: "gamma", 3: "bias"},
        "PRelu": {1: "alpha"},
        "Gather": {0: "embedding"},
        **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    },
    dense={
        "MatMul": ("", ""),
        "MatMulInteger": ("", ""),
        "FusedMatMul": ("transA", "transB"),
        "Gemm": ("transA", "transB"),
        "FusedGemm": ("transA", "transB"),
    },
    add=frozenset({"Add"}),
    subtract=frozenset({"Sub"}),
    multiply=frozenset({"Mul"}),
    unchanged=frozenset({"Identity", "Cast", "CastLike", "DequantizeLinear"}),
    transpose=frozenset({"Transpose"}),
    reshape=frozenset({"Reshape", "Unsqueeze", "Squeeze"}),
    concat=frozenset({"Concat"}),
    sizes=frozenset({"Shape", "Size", "ConstantOfShape"}),
    steered=frozenset(
        {
            "Clip",
            "DequantizeLinear",
            "OneHot",
            "Pad",
            "QuantizeLinear",
            "Range",
            "Resize",
            "Upsample",
        }
    ),
    flatten=frozenset({"Flatten"}),
)


class _Onnx(Stored):
    format = "onnx"
    framework = "onnx"

    def __init__(self, files: Files, tensors: list[StoredTensor]) -> None:
        self._files = files
        self.tensors = tuple(tensors)

    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        return self._files.read(tensor.where, slices)

    def close(self) -> None:
        self._files.close()


def sniff(sample: Sample) -> bool:
    """Protobuf has no magic: the whole file must be fields of a ModelProto, a graph among them."""
    head = sample.head
    if not head or MODEL_FIELDS.get(head[0] >> 3) != head[0] & 7:
        return False
    seen: dict[int, int] = {}
    end = 0
    try:
        for entry in opened(sample.path):
            if MODEL_FIELDS.get(entry.number) != entry.wire:
                return False
            seen[entry.number], end = entry.value, entry.stop
    except CorruptFile:
        # A graph that ends after the file does: cut off, which `open` will say.
        if not _CUT_OFF.match(head, end):
            return False
        seen[GRAPH] = 0
    except OSError:
        return False
    return GRAPH in seen and 0 < seen.get(IR_VERSION, 0) < _MAX_IR


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile`, `MissingShard`, `UnsafeFile`, `FormatError`."""
    message = opened(path)
    model = Model(message)
    files = Files(path, message)
    try:
        files.check([t for found in model.tensors.values() for t in _parts(found.tensor)])
        names = _names(model.tensors)
        reading = _op_graph.read(model.ops, _params(model, names), DIALECT)
        listed = list(_listed({names[v]: found for v, found in model.tensors.items()}, reading))
        stored = _Onnx(files, listed)
    except BaseException:
        files.close()
        raise
    stored.metadata = model.metadata
    stored.notes = tuple(_notes(model))
    stored.ties = tuple(_ties(listed))
    stored.flow = reading.flow if model.whole else ()
    stored.beside = files.others
    return stored


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.place if isinstance(tensor.place, Sparse) else (tensor,)


def _params(model: Model, names: Mapping[str, str]) -> dict[str, Param]:
    return {
        value: Param(names[value], found.tensor.shape, found.tensor.floating)
        for value, found in model.tensors.items()
        if found.tensor.dtype != TEXT
    }


def _listed(tensors: Mapping[str, Found], reading: Reading) -> Iterable[StoredTensor]:
    """The tensors in the order of use; then those that nothing uses."""
    for name in dict.fromkeys((*reading.order, *tensors)):
        tensor, use = tensors[name].tensor, reading.uses.get(name)
        if tensor.dtype == TEXT or (tensors[name].constant and not use and not _matrix(tensor)):
            continue
        kind = "weight" if use else _kind(name, tensor, name in reading.settings)
        owner, module, role = use or ("", "", "")
        yield StoredTensor((name,), tensor.shape, tensor.dtype, tensor, module, role, kind, owner)


def _matrix(tensor: Tensor) -> bool:
    return tensor.floating and len(tensor.shape) > 1 and math.prod(tensor.shape) > 1


def _kind(name: str, tensor: Tensor, setting: bool) -> Literal["weight", "counter", "constant"]:
    """Of a tensor that is no layer's."""
    if name.endswith("num_batches_tracked"):
        return "counter"
    made_up = re.fullmatch(r"\d+", name) or any(mark in name for mark in ("/", ":"))
    single = math.prod(tensor.shape) == 1 and made_up
    return "constant" if single or setting or not tensor.floating else "weight"


def _names(tensors: Mapping[str, Found]) -> dict[str, str]:
    """Names to list values by; unique, and the file's own where they are."""
    count = Counter(found.tensor.name for found in tensors.values())
    names: dict[str, str] = {}
    used = Counter[str]()
    for value, found in tensors.items():
        own = found.tensor.name
        name = f"{found.scope}/{own}" if found.scope and count[own] > 1 else own
        used[name] += 1
        names[value] = name if used[name] == 1 else f"{name}#{used[name]}"
    return names


def _notes(model: Model) -> Iterable[str]:
    texts = [f.tensor.name for f in model.tensors.values() if f.tensor.dtype == TEXT]
    if texts:
        more = "" if len(texts) <= _SHOWN else " …"
        yield f"{len(texts)} text tensors are not listed: {', '.join(texts[:_SHOWN])}{more}"


def _ties(tensors: Iterable[StoredTensor]) -> Iterable[tuple[tuple[str, ...], ...]]:
    """Tensors that are the same bytes of a file of external data."""
    groups: dict[object, list[tuple[str, ...]]] = defaultdict(list)
    for tensor in tensors:
        place = tensor.where.place
        if isinstance(place, External) and place.length:
            groups[place, tensor.shape, tensor.dtype].append(tensor.path)
    return [tuple(group) for group in groups.values() if len(group) > 1]
