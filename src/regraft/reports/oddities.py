"""What is odd about a checkpoint: one line for each kind, with the tensors that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from regraft.tensors import Catalogue, TensorInfo

if TYPE_CHECKING:
    from regraft.checkpoints import Checkpoint
    from regraft.reports.facts import Facts
    from regraft.reports.statistics import Statistics

_SHOWN = 2
# Frameworks whose kernels have their outputs last; PyTorch's have them first.
_OUTPUTS_LAST = ("keras", "jax", "tensorflow")


class Oddity(NamedTuple):
    """A reason to look twice: a stable code, a sentence, and the tensors that it is about."""

    code: str
    text: str
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


def of_file(found: Checkpoint, facts: Facts) -> list[Oddity]:
    """What the listing alone shows. Codes: `note` (what the format remarks: what it left out, or
    refused to run) and `other-weights`."""
    told = [note for note in found.notes if note not in found.choice.notes]
    odd = [Oddity("note", note) for note in told]
    # Who asked for a part knows that there are others.
    for part in facts.rivals if found.choice.notes else ():
        text = f"{part!r} holds {facts.others[part]:,} tensors, too: --container {part} opens it"
        odd.append(Oddity("other-weights", f"opened {found.container!r}; {text}"))
    return odd


def of_values(
    catalogue: Catalogue, infos: Iterable[TensorInfo], measured: Mapping[str, Statistics]
) -> list[Oddity]:
    """What the statistics show. Codes: `not-finite`, `negative-variance`, `dead-channels`,
    `all-zero`, `constant`, `denormal`."""
    looked = [(info, measured[info.name]) for info in infos]
    weights = [(info, s) for info, s in looked if info.kind == "weight" and info.size > 1]
    variances = _Roles(catalogue).variances
    found = (
        _odd("not-finite", "{:,} NaN or Inf in", [(i, s.nan + s.inf) for i, s in looked]),
        _odd("negative-variance", "a negative variance in",
             [(i, i.name in variances and (s.min or 0) < 0) for i, s in looked]),
        _odd("dead-channels", "{:,} of the output channels all zero in",
             [(i, s.dead[0] if s.dead and s.dead[0] < s.dead[1] else 0) for i, s in weights]),
        _odd("all-zero", "nothing but zeros in", [(i, s.zeros == s.size) for i, s in weights]),
        _odd("constant", "the same value throughout in",
             [(i, s.constant and s.min != 0) for i, s in weights]),
        _odd("denormal", "{:,} values too small to be exact, slow on some processors, in",
             [(i, s.denormal) for i, s in looked]),
    )  # fmt: skip
    return [odd for odd in found if odd]


def _odd(code: str, what: str, counts: Iterable[tuple[TensorInfo, int]]) -> Oddity | None:
    hit = {info.name: count for info, count in counts if count}
    if not hit:
        return None
    first, *more = names = tuple(hit)
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    where = f"{len(names):,} tensors: {shown}" if more else first
    return Oddity(code, f"{what.format(sum(hit.values()))} {where}", names)


def output_axes(catalogue: Catalogue) -> dict[str, tuple[int, ...]]:
    """The axes of each kernel that count its output channels; nothing where that is not known."""
    return dict(_Roles(catalogue).output_axes())


class _Roles:
    """What tensors are for, as matching sees it."""

    def __init__(self, catalogue: Catalogue) -> None:
        from regraft.matching.modules import conventions_of, modules_of

        self._convention = conventions_of(catalogue)
        modules = modules_of(catalogue, self._convention)
        self._leaves = [leaf for module in modules for leaf in module.leaves.values()]

    @property
    def variances(self) -> set[str]:
        return {leaf.info.name for leaf in self._leaves if leaf.role == "var"}

    def output_axes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for leaf in self._leaves:
            rank = len(leaf.info.shape)
            axes = _output_axes(leaf.framework, leaf.kind, rank)
            if leaf.role == "kernel" and rank > 1 and axes:
                yield leaf.info.name, axes


def _output_axes(framework: str, kind: str, rank: int) -> tuple[int, ...]:
    if framework == "torch":
        return (1,) if kind == "transposed" else (0,)
    if framework not in _OUTPUTS_LAST:
        return ()
    if kind == "depthwise":  # [*space, channels, multiplier]
        return rank - 2, rank - 1
    # Keras keeps a transposed kernel as [*space, out, in].
    return (rank - 2,) if kind == "transposed" and framework != "jax" else (rank - 1,)
