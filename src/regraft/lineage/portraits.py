"""A portrait of a checkpoint: what of it is held in memory while many are compared.

Each tensor is known by its hash and by a sample of its values, taken at the same places in every
file, so that distances of samples are distances of tensors. Small tensors are their own samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from regraft.lineage.arithmetic import drawn
from regraft.lineage.fingerprints import constant, parts
from regraft.lineage.measuring import pieces
from regraft.tensors import Read, TensorInfo, numpy_dtype
from regraft.values import bits, let_go

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array

# Values of all files' samples together, of one file's, of one file's times the pairs of files (each
# pair is compared), and of one tensor's at least.
_ALL, _FILE, _PAIRS, _TENSOR = 1 << 26, 1 << 21, 1 << 27, 512


@dataclass(frozen=True)
class Part:
    """One tensor in a portrait. `values` is the sample as float64; `dtype` that of the file."""

    shape: tuple[int, ...]
    dtype: str
    hash: str
    values: NDArray[np.float64] = field(repr=False)

    @cached_property
    def constant(self) -> bool:
        return constant(self.values)

    @cached_property
    def square(self) -> float:
        """Sum of squares."""
        return float(self.values @ self.values)

    @cached_property
    def drawn(self) -> bool:
        """Whether the values are still as a generator drew them."""
        return drawn(self.values, self.shape, self.dtype)

    @cached_property
    def kurtosis(self) -> float:
        """Fourth moment by the square of the second, about the mean: 3 for a normal distribution;
        0 where there is no spread."""
        centred = self.values - self.values.mean()
        spread = float(np.mean(centred**2))
        return float(np.mean(centred**4)) / spread**2 if spread > 0 else 0.0


@dataclass(frozen=True)
class Portrait:
    """A checkpoint among others.

    - `name`: of the file in its folder. `parts`: tensors of floats, in the family's terms; counters
      and constants are left out.
    - `names`: the file's own names of tensors. `batches`: the largest count of batches that a norm
      kept, `None` where there is none. `counters`: what else only grows, by the word for it.
    - `date`: when it was saved, as the file itself says, `None` where it does not. `time`: of its
      last change, in nanoseconds. `sources`: hashes of files that its lineage names.
    """

    name: str
    parts: Mapping[str, Part] = field(repr=False)
    names: frozenset[str] = field(default=frozenset(), repr=False)
    batches: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    date: float | None = None
    time: int = 0
    sources: tuple[str, ...] = ()
    sha256: str = ""


def sample_size(files: int, tensors: int) -> int:
    """Values to keep of each tensor."""
    pairs = max(1, files * (files - 1) // 2)
    return max(_TENSOR, min(_FILE, _ALL // max(1, files), _PAIRS // pairs) // max(1, tensors))


def parts_of(infos: Iterable[tuple[str, TensorInfo, Read]], count: int) -> dict[str, Part]:
    """The parts of a portrait: of tensors with their name in the family's vocabulary and what reads
    them; each is read once, in pieces."""
    found: dict[str, Part] = {}
    for name, info, read in infos:
        if info.kind != "weight" or not _is_float(info.dtype) or not info.size:
            continue
        found[name] = _part(info, read, count)
    return found


def _is_float(dtype: str) -> bool:
    try:
        kind = numpy_dtype(dtype)
    except (TypeError, AttributeError):
        return False
    return kind.kind in "fc" or (kind.kind == "V" and "int" not in dtype)


def _part(info: TensorInfo, read: Read, count: int) -> Part:
    state = xxhash.xxh3_128()
    chosen: list[NDArray[np.float64]] = []
    places = _places(info.size, count)
    at = 0
    for array in parts(read, info):
        state.update(bits(array).data)
        flat = array.reshape(-1)
        here = places[np.searchsorted(places, at) : np.searchsorted(places, at + flat.size)]
        chosen.append(_finite(flat[here - at]))
        at += flat.size
    return Part(info.shape, info.dtype, state.hexdigest(), np.concatenate(chosen))


def _places(size: int, count: int) -> NDArray[np.int64]:
    """The same for every tensor of this size; spread evenly, at random inside each stretch."""
    if size <= count:
        return np.arange(size)
    edges = np.linspace(0, size, count + 1).astype(np.int64)
    random = np.random.default_rng(size)
    return edges[:-1] + (random.random(count) * np.diff(edges)).astype(np.int64)


def _finite(values: Array) -> NDArray[np.float64]:
    wide = np.abs(values.astype(np.complex128)) if values.dtype.kind == "c" else values
    with np.errstate(all="ignore"):
        return np.nan_to_num(wide.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def largest(read: Read, infos: Iterable[TensorInfo]) -> float | None:
    """The largest value of small tensors such as counters; `None` where there is none."""
    found: list[float] = []
    for info in infos:
        for slices in pieces(info.shape, 8):
            array = read(info.name, slices)
            if array.size:
                found.append(float(np.max(array.astype(np.float64))))
            let_go(array)
    return max(found, default=None)
