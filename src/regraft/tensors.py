"""The nouns that carry no data: TensorInfo, Catalogue and what a format hands over, Stored.

Both sides of a match are Catalogues, whether they come from a file or from a model.
Nothing here imports numpy: listing a file must not need it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from regraft import markup

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.generic]"
# Arrays by name, as probes and frameworks' outputs come.
Arrays: TypeAlias = "Mapping[str, Array]"
Slices: TypeAlias = "tuple[slice, ...]"
Read: TypeAlias = "Callable[[str, Slices | None], Array]"

# Width of one element in bits, under numpy's and ml_dtypes' names. The only list of plain dtypes.
DTYPE_BITS: dict[str, int] = {
    "bool": 8,
    "int2": 2,
    "uint2": 2,
    "int4": 4,
    "uint4": 4,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "int32": 32,
    "uint32": 32,
    "int64": 64,
    "uint64": 64,
    "float8_e3m4": 8,
    "float8_e4m3": 8,
    "float8_e4m3b11fnuz": 8,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float4_e2m1fn": 4,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float64": 64,
    "complex64": 64,
    "complex128": 128,
}


# Coded dtypes: blocks of values share scales, or codes stand for values. For each, the values and
# the bytes of one block. They are listed by the name of their code and read as float32.
# First those of GGML (ggml-common.h), under its names; then PyTorch's quantized integers.
CODED: dict[str, tuple[int, int]] = {
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q8_1": (32, 40),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "q8_k": (256, 292),
    "iq2_xxs": (256, 66),
    "iq2_xs": (256, 74),
    "iq3_xxs": (256, 98),
    "iq1_s": (256, 50),
    "iq4_nl": (32, 18),
    "iq3_s": (256, 110),
    "iq2_s": (256, 82),
    "iq4_xs": (256, 136),
    "iq1_m": (256, 56),
    "tq1_0": (256, 54),
    "tq2_0": (256, 66),
    "mxfp4": (32, 17),
    "nvfp4": (64, 36),
    "q1_0": (128, 18),
    "qint8": (1, 1),
    "quint8": (1, 1),
    "qint32": (1, 4),
    "quint4x2": (2, 1),
    "quint2x4": (4, 1),
}


def stored_bytes(count: int, dtype: str) -> int:
    """Bytes that `count` values of a plain or coded dtype take, packed."""
    if dtype in CODED:
        values, size = CODED[dtype]
        return -(-count // values) * size
    return (count * DTYPE_BITS[dtype] + 7) // 8


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The numpy dtype that values of this dtype are read in: that of a name in `DTYPE_BITS`,
    through ml_dtypes where numpy has none, and float32 for a coded one."""
    import numpy as np

    if name in CODED:
        return np.dtype(np.float32)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


# Plain values by layer and name.
Settings: TypeAlias = "Mapping[str, Mapping[str, int | float | str | bool]]"
Order = Literal["definition", "stored", "sorted"]


class TensorInfo(NamedTuple):
    """What is known of one tensor without its values.

    - `name`: unique in its Catalogue.
    - `shape`: sizes, outermost first; `()` for a scalar.
    - `dtype`: a numpy or ml_dtypes name, a key of `DTYPE_BITS`; or the name of a code, a key of
      `CODED`, whose values are read as float32.
    - `module`: class of the layer that owns it (`Conv2d`, `BatchNormalization`), `""` if unknown.
    - `role`: the layer's own name for it (`kernel`, `running_mean`) where the name does not
      end with it, `""` otherwise.
    - `kind`: `weight` (a parameter or statistic), `counter` (e.g. `num_batches_tracked`,
      which no output depends on), or `constant` (recomputed by the model, e.g. `position_ids`).
    - `owner`: path of the layer that owns it, where the name does not begin with it (a graph
      says that `onnx::Conv_17` is the kernel of `stem.conv`); `role` is then given, too.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    module: str = ""
    role: str = ""
    kind: Literal["weight", "counter", "constant"] = "weight"
    owner: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as stored, packed where an element is smaller than a byte."""
        return stored_bytes(self.size, self.dtype)


class Rows(NamedTuple):
    """Rows `start` to `stop` (exclusive; `None`: to the end) of the tensor `name`: a projection, or
    its part of a fused one."""

    name: str
    start: int = 0
    stop: int | None = None


class FlowNode(NamedTuple):
    """One step of a model's dataflow: a layer with weights, or a merge of several tensors.

    - `owner`: the layer's path as its tensors' names begin (`layer1.0.conv1`), or as their
      `owner` says; `""` for a merge.
    - `label`: `""` for a layer (its tensors tell what it is), `add`, `cat`, `mul` … for a merge.
    - `inputs`: indices of the nodes it takes data from; all smaller than its own index.

    - `via`: steps on the way from the inputs that rearrange axes, `flatten`, `permute`, `reshape`,
      or take a mean or the largest of what is in a window, `pool`.

    Other steps without weights and with one input (activations, padding) are left out.
    A layer that is used twice has two nodes.
    """

    owner: str
    label: str
    inputs: tuple[int, ...]
    via: tuple[str, ...] = ()


class Catalogue(Mapping[str, TensorInfo]):
    """An ordered collection of TensorInfos, and what else the file or the model says.

    **Arguments:**

    - `tensors`: in the order of the file or of the model's definition.
    - `framework`: `torch`, `keras`, `jax`, `onnx`, or `""` when the file does not say.
    - `order`: `definition` when the container guarantees the order in which layers were made
      (a live model, Keras' `layer_names`), `stored` when it is merely the order of writing,
      `sorted` when the writer sorted it, so that it says nothing.
    - `ties`: groups of names that share one storage.
    - `container`: the part of the file that was chosen (`state_dict`, `model_weights`).
    - `label`: what to call it in messages (a file name, a class name).
    - `metadata`: strings that the file carries.
    - `notes`: harmless remarks, such as other containers that could have been chosen.
    - `flow`: the dataflow of the model in topological order, empty where it is not to be had.
    - `settings`: by layer (`""` for the model), plain values that a live model's layers hold, such
      as `num_heads` and `eps`.
    """

    def __init__(
        self,
        tensors: Iterable[TensorInfo],
        *,
        framework: str = "",
        order: Order = "stored",
        ties: Iterable[tuple[str, ...]] = (),
        container: str = "",
        label: str = "",
        metadata: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        flow: Iterable[FlowNode] = (),
        settings: Settings | None = None,
    ) -> None:
        self._tensors: dict[str, TensorInfo] = {}
        for tensor in tensors:
            if tensor.name in self._tensors:
                raise ValueError(f"two tensors are called {tensor.name!r}")
            self._tensors[tensor.name] = tensor
        self.framework = framework
        self.order: Order = order
        self.ties = tuple(ties)
        self.container = container
        self.label = label
        self.metadata: Mapping[str, str] = {} if metadata is None else metadata
        self._notes = tuple(notes)
        self._flow = tuple(flow)
        self.settings: Settings = settings or {}

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    @property
    def flow(self) -> tuple[FlowNode, ...]:
        return self._flow

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, tied ones counted once."""
        again = {name for group in self.ties for name in group[1:]}
        return sum(t.nbytes for t in self.values() if t.name not in again)

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.label!r}, {len(self)} tensors, {self.nbytes:,} bytes)"

    def _repr_html_(self) -> str:
        rows = ((t.name, list(t.shape), t.dtype, f"{t.nbytes:,}") for t in self.values())
        return markup.table(repr(self), ("tensor", "shape", "dtype", "bytes"), rows, len(self))


class Told(Mapping[str, str]):
    """Strings that a live model tells, each made when it is first asked for; one that it does not
    tell after all (`None`) is not there."""

    def __init__(self, **makers: Callable[[], str | None]) -> None:
        self._makers = makers
        self._made: dict[str, str | None] = {}

    def __getitem__(self, key: str) -> str:
        if key not in self._made:
            self._made[key] = self._makers[key]()
        made = self._made[key]
        if made is None:
            raise KeyError(key)
        return made

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._makers if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


# A dataflow, and remarks about it.
Traced: TypeAlias = "tuple[Iterable[FlowNode], Iterable[str]]"


class Skeleton(Catalogue):
    """A target model's Catalogue: names, shapes and roles, but no weights.

    `trace` gives the dataflow of a model that has to be traced for it, which may take longer than
    all the rest: it is called when the flow, or a remark about it, is first asked for.
    """

    def __init__(
        self,
        tensors: Iterable[TensorInfo],
        *,
        trace: Callable[[], Traced] = lambda: ((), ()),
        **known: Any,
    ) -> None:
        super().__init__(tensors, **known)
        self._trace = trace

    @cached_property
    def _traced(self) -> tuple[tuple[FlowNode, ...], tuple[str, ...]]:
        flow, notes = self._trace()
        return (*self._flow, *flow), (*self._notes, *notes)

    @property
    def flow(self) -> tuple[FlowNode, ...]:
        return self._traced[0]

    @property
    def notes(self) -> tuple[str, ...]:
        return self._traced[1]


class StoredTensor(NamedTuple):
    """One tensor as a format finds it, before a container is chosen.

    `path` is the nesting in the file, outermost first: `("state_dict", "conv1.weight")`.
    `where` is the format's own note of how to reach the bytes. Other fields as in TensorInfo.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    where: Any
    module: str = ""
    role: str = ""
    kind: Literal["weight", "counter", "constant"] = "weight"
    owner: str = ""


class Spread(NamedTuple):
    """One checkpoint in several files, as each of them says of itself.

    `files` are their names, in order, this one's among them; `tensors` counts those of all files
    together, `None` where the file does not say.
    """

    files: tuple[str, ...]
    tensors: int | None = None


class Stored(ABC):
    """What a format returns from `open`: all tensors of a file, listed but not read.

    Fields are set by the format; `separator` joins the parts of a path into a name. `flow` is
    as in Catalogue, its owners as in names of the whole file.
    """

    format: str
    framework: str = ""
    order: Order = "stored"
    separator: str = "."
    tensors: tuple[StoredTensor, ...]
    # Groups of paths that share one storage with equal offset, shape and strides.
    ties: tuple[tuple[tuple[str, ...], ...], ...] = ()
    metadata: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    flow: tuple[FlowNode, ...] = ()
    # Set where this file alone is not the whole checkpoint.
    spread: Spread | None = None
    # Names of files that tensors are read from besides the one that was opened, from its folder on.
    beside: tuple[str, ...] = ()
    # What was opened, where it is only a part of what the caller named (the newest of its steps).
    at: Path | None = None

    @abstractmethod
    def read(self, tensor: StoredTensor, slices: Slices | None = None) -> Array:
        """The values, or the part of them under `slices` (one `slice` per axis, step 1).

        Reads no more bytes than a slice of the outermost axis needs. The result owns its
        memory or is a read-only view, which holds while nobody makes the file shorter.

        **Raises** `CorruptFile` where bytes are missing.
        """

    def close(self) -> None:  # noqa: B027  (a format without open handles has nothing to do)
        """Releases file handles and maps."""
