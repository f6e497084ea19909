"""What training did to each tensor, shown by hashes: that what was frozen is the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.errors import RegraftError, TargetError, VerificationFailed
from regraft.transfer import fingerprint
from regraft.tuning.courses import Course
from regraft.tuning.policies import Policy

if TYPE_CHECKING:
    from regraft.tensors import Array


@dataclass(frozen=True)
class TuningReceipt:
    """What training did.

    - `policy`: what it was told. `epochs`: how many it ran.
    - `frozen`: by tensor that was not to change, the xxh3-128 of its values before and after.
    - `learned`: tensors that changed. `idle`: tensors that might have and did not.
    """

    policy: Policy
    epochs: int
    frozen: Mapping[str, tuple[str, str]] = field(repr=False)
    learned: tuple[str, ...] = field(default=(), repr=False)
    idle: tuple[str, ...] = ()

    @property
    def moved(self) -> list[str]:
        """Tensors that were frozen and changed all the same."""
        return [name for name, (before, after) in self.frozen.items() if before != after]

    @property
    def held(self) -> bool:
        """Whether every frozen tensor is the same bits as before."""
        return not self.moved

    def check(self) -> TuningReceipt:
        """Itself. **Raises** `VerificationFailed` where something frozen moved."""
        if self.held:
            return self
        raise VerificationFailed(
            "training",
            report=self,
            found=f"{len(self.moved)} frozen tensors that changed, such as {self.moved[0]!r}",
            expected="the same bits as before training",
            hint="let nothing else write to the model: no optimizer of its own, no other averaging",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "policy": asdict(self.policy),
            "epochs": self.epochs,
            "held": self.held,
            "frozen": {name: list(pair) for name, pair in self.frozen.items()},
            "learned": list(self.learned),
            "idle": list(self.idle),
        }

    def __str__(self) -> str:
        rows = [f"{len(self.learned)} tensors learned"]
        if self.frozen:
            same = len(self.frozen) - len(self.moved)
            rows.append(f"{same} of {len(self.frozen)} frozen tensors are the same bits as before")
        rows += [f"  moved  {name}" for name in self.moved]
        if self.idle:
            rows.append(f"{len(self.idle)} tensors might have learned and did not change")
        return "\n".join(rows)


@contextmanager
def beside_training(what: str) -> Generator[None]:
    """Keeps a lineage of what a trainer writes; where that cannot be, it is told as a warning, for
    no training is to end by it."""
    try:
        yield
    except (RegraftError, OSError) as error:
        warnings.warn(f"no lineage is kept with {what}: {error}", stacklevel=3)


class Watch:
    """Hashes before training, to compare with those after it."""

    def __init__(self, course: Course, read: Callable[[str], Array]) -> None:
        self._course = course
        self._frozen = self._hashes(read, course.frozen)
        self._others = self._hashes(read, (name for name in course if name not in self._frozen))

    @property
    def policy(self) -> Policy:
        return self._course.policy

    @staticmethod
    def _hashes(read: Callable[[str], Array], names: Iterable[str]) -> dict[str, str]:
        return {name: fingerprint(read(name)) for name in names}

    def receipt(self, read: Callable[[str], Array], epochs: int) -> TuningReceipt:
        """How it is now, beside how it was."""
        after = self._hashes(read, self._frozen)
        others = self._hashes(read, self._others)
        changed = {name: others[name] != digest for name, digest in self._others.items()}
        return TuningReceipt(
            self._course.policy,
            epochs,
            {name: (digest, after[name]) for name, digest in self._frozen.items()},
            tuple(name for name, moved in changed.items() if moved),
            tuple(
                name
                for name, moved in changed.items()
                if not moved and not self._course[name].statistic
            ),
        )

    def to_json(self) -> dict[str, dict[str, str]]:
        """The hashes, to be kept in a checkpoint: a run that goes on compares with its start."""
        return {"frozen": dict(self._frozen), "others": dict(self._others)}

    def take(self, kept: Mapping[str, Mapping[str, str]]) -> None:
        """Hashes of the start of the run that this one goes on with."""
        self._frozen = {name: kept["frozen"].get(name, "") for name in self._frozen}
        self._others = {name: kept["others"].get(name, "") for name in self._others}


def nothing_measured() -> TargetError:
    """What is raised where there are no batches to measure BatchNorm's statistics on."""
    return TargetError(
        "BatchNorm's statistics",
        found="no batch to measure them on",
        expected="new data, in batches as large as in training",
        hint="a generator that was read to its end gives nothing more: give a list or a loader",
    )


def finished(
    begun: Watch | None,
    read: Callable[[str], Array],
    epochs: int,
    measure: Callable[[Iterable[Any]], object],
    batches: Iterable[Any] | None,
) -> TuningReceipt:
    """The end of every Tuning: statistics are measured on `batches` where the policy says so, and
    hashes are compared. **Raises** `TargetError` where there are no batches, or was no `begin`."""
    if begun is None:
        raise TargetError("Tuning.finish", found="no begin()", expected="begin() before it")
    if begun.policy.batchnorm == "recalibrate":
        if batches is None:
            raise TargetError(
                "batchnorm='recalibrate'",
                found="no data to measure statistics on",
                expected="tuning.finish(batches)",
            )
        measure(batches)
    return begun.receipt(read, epochs)
