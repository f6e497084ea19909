"""What the values of tensors look like, a piece at a time: memory stays the same for any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.tensors import CODED, DTYPE_BITS, TensorInfo
from regraft.values import let_go

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from regraft.tensors import Array, Read, Slices

# Bytes that are read at once, and values that are looked at at once, so that they stay in a cache.
_PIECE = 32 * 2**20
_CHUNK = 2**17


class Statistics(NamedTuple):
    """Statistics of one tensor's values.

    - `min`, `max`, `mean`, `std`: of the finite values, the deviation over all of them (not a
      sample's), in float64; `None` for complex tensors and where no value is finite.
    - `zeros`, `nan`, `inf`: how many there are. A complex value counts where either part does.
    - `denormal`: how many are nearer to zero than the smallest normal number of float32 or wider
      (bfloat16 has its range); narrower dtypes use such numbers all the time.
    - `dead`: output channels that are all zero, of how many; `None` where it is not known which
      axes they are.
    """

    size: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    zeros: int
    nan: int
    inf: int
    denormal: int = 0
    dead: tuple[int, int] | None = None

    @property
    def constant(self) -> bool:
        """Whether all values, of which there are several, are one and the same."""
        return self.size > 1 and self.min == self.max and not self.nan and not self.inf

    def to_json(self) -> dict[str, float | int | None]:
        found = self._asdict()
        del found["size"], found["dead"]
        return found if self.dead is None else {**found, "dead_channels": self.dead[0]}


def measured(
    infos: Iterable[TensorInfo], read: Read, output_axes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[TensorInfo, Statistics]]:
    """Reads tensors once, piece by piece, and gives the statistics of each.

    **Arguments:**

    - `read`: gives the values of a tensor under slices, such as `Checkpoint.read`.
    - `output_axes`: by tensor the axes that count output channels, in order, where that is known.

    **Raises** what reading raises.
    """
    for info in infos:
        running = _Running(info, output_axes.get(info.name, ()))
        whole = tuple(slice(0, n) for n in info.shape)
        for slices in pieces(info):
            piece = read(info.name, None if slices == whole else slices)
            running.add(piece, slices)
            let_go(piece)
        yield info, running.result()


def pieces(info: TensorInfo) -> Iterator[Slices]:
    """Slices that cover a tensor, each of no more bytes than are to be read at once."""
    shape = info.shape
    if not info.size:
        return
    limit = max(1, _PIECE * 8 // (32 if info.dtype in CODED else max(8, DTYPE_BITS[info.dtype])))
    # The outermost axis that need not be taken one by one.
    axis = next((a for a in range(len(shape)) if math.prod(shape[a + 1 :]) <= limit), 0)
    step = max(1, limit // math.prod(shape[axis + 1 :]))
    inner = tuple(slice(0, n) for n in shape[axis + 1 :])
    for outer in itertools.product(*(range(n) for n in shape[:axis])):
        fixed = tuple(slice(i, i + 1) for i in outer)
        if not shape:
            yield ()
            continue
        for start in range(0, shape[axis], step):
            yield (*fixed, slice(start, min(start + step, shape[axis])), *inner)


class _Running:
    """Sums over pieces; means and deviations are merged as Chan, Golub and LeVeque (1983) do."""

    def __init__(self, info: TensorInfo, output_axes: tuple[int, ...]) -> None:
        self._info = info
        self._axes = output_axes
        self._alive = np.zeros([info.shape[axis] for axis in output_axes], bool)
        self._zeros = self._nan = self._inf = self._denormal = 0
        self._min: float | None = None
        self._max: float | None = None
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        plain = "float32" if info.dtype in CODED else info.dtype
        self._complex = plain.startswith("complex")
        wide = plain in ("float32", "bfloat16", "float64")
        self._tiny = float(np.finfo("f8" if plain == "float64" else "f4").tiny) if wide else 0.0

    def add(self, piece: Array, slices: Slices) -> None:
        flat = piece.reshape(-1)
        before = self._zeros
        with np.errstate(all="ignore"):  # what overflows is told as such
            for start in range(0, flat.size, _CHUNK):
                chunk = flat[start : start + _CHUNK]
                if self._complex:
                    self._count_odd(chunk)
                else:
                    self._look(chunk)
        if self._axes:
            self._look_at_channels(piece, slices, self._zeros > before)

    def _count_odd(self, chunk: NDArray[np.generic]) -> None:
        self._zeros += int((chunk == 0).sum())
        self._nan += int(np.isnan(chunk).sum())
        self._inf += int(np.isinf(chunk).sum())

    def _look(self, chunk: NDArray[np.generic]) -> None:
        values = chunk.astype(np.float64)
        zeros = values.size - int(np.count_nonzero(values))
        self._zeros += zeros
        total = float(values.sum())
        # One NaN or Inf makes the sum one, too; the sum of what is finite may overflow, though.
        if not math.isfinite(total):
            self._nan += int(np.isnan(values).sum())
            self._inf += int(np.isinf(values).sum())
            values = values[np.isfinite(values)]
            chunk, total = values, float(values.sum())
        if not values.size:
            return
        if self._tiny:
            self._denormal += int(np.count_nonzero(np.abs(values) < self._tiny)) - zeros
        # In its own dtype a wide integer is exact, and any other quicker.
        exact = chunk if chunk.dtype.kind in "iuf" else values
        low, high = exact.min().item(), exact.max().item()
        self._min = low if self._min is None else min(self._min, low)
        self._max = high if self._max is None else max(self._max, high)
        self._merge(values, total / values.size)

    def _merge(self, values: NDArray[np.float64], mean: float) -> None:
        away = mean - self._mean
        values -= mean
        count = self._count + values.size
        squares = float(np.square(values, out=values).sum())
        self._squares += squares + away * away * self._count * values.size / count
        self._mean += away * values.size / count
        self._count = count

    def _look_at_channels(self, piece: Array, slices: Slices, some_zero: bool) -> None:
        where = tuple(slices[axis] for axis in self._axes)
        if not some_zero:
            self._alive[where] = True
            return
        others = tuple(axis for axis in range(piece.ndim) if axis not in self._axes)
        self._alive[where] |= (piece != 0).any(axis=others)

    def result(self) -> Statistics:
        known = self._count > 0
        return Statistics(
            self._info.size,
            self._min,
            self._max,
            self._mean if known else None,
            math.sqrt(self._squares / self._count) if known else None,
            self._zeros,
            self._nan,
            self._inf,
            self._denormal,
            (int(self._alive.size - self._alive.sum()), self._alive.size) if self._axes else None,
        )
