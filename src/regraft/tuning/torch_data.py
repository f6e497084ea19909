"""Data in memory as PyTorch takes it: batches in an order that seed and epoch fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from regraft.targets._torch_arrays import to_torch
from regraft.tuning import Settings
from regraft.tuning.seeds import even, order


class Samples(Dataset[Any]):
    """Pairs of a sample (a tensor, or a dict of them) and its answer."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x = {k: to_torch(v) for k, v in x.items()} if isinstance(x, Mapping) else to_torch(x)
        answers = to_torch(y)
        self.y = answers.long() if y.dtype.kind in "iub" else answers.float()

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, index: list[int]) -> tuple[Any, Any]:
        """A whole batch at once."""
        if isinstance(self.x, dict):
            return {k: v[index] for k, v in self.x.items()}, self.y[index]
        return self.x[index], self.y[index]


class EpochSampler(Sampler[int]):
    """Each epoch's own order; with several processes, every process its share of it."""

    def __init__(self, count: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._count, self._seed, self._rank, self._world = count, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        drawn = order(self._count, self._seed, self.epoch)
        # Some come twice where the processes' shares would not be equal.
        drawn += drawn[: -len(drawn) % self._world]
        return iter(drawn[self._rank :: self._world])

    def __len__(self) -> int:
        return -(-self._count // self._world)


def _same(batch: Any) -> Any:
    return batch


def training(x: Any, y: Any, settings: Settings, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Batches for training. A last batch of one sample is left out: it would break BatchNorm."""
    sampler = EpochSampler(len(y), settings.seed, rank, world)
    odd = len(sampler) % settings.batch_size == 1 and len(sampler) > settings.batch_size
    return DataLoader(
        Samples(x, y), settings.batch_size, sampler=sampler, drop_last=odd, collate_fn=_same
    )


def measuring(x: Any, y: Any, settings: Settings) -> DataLoader[Any]:
    """Batches for measuring statistics."""
    batches = even(len(y), settings.batch_size, settings.seed)
    return DataLoader(Samples(x, y), batch_sampler=batches, collate_fn=_same)


def in_order(x: Any, y: Any, settings: Settings) -> DataLoader[Any]:
    """Batches for validation, first sample first."""
    return DataLoader(Samples(x, y), settings.batch_size, collate_fn=_same)
