"""A failure at each tensor, of every kind of target: the model is as it was, to the bit; where it
cannot be, the error names what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft as rg
from regraft import copying, renewing, targets, transfer
from regraft.checkpoints import Checkpoint
from regraft.errors import TransferError
from targets.kinds import KINDS, filled, values


class Injected(Exception):
    """What no code of ours expects."""


class Failing:
    """Calls a function, and raises at one call instead; counts."""

    def __init__(self, function: Callable[..., Any], error: type[BaseException]) -> None:
        self.function, self.error = function, error
        self.at, self.calls = -1, 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("injected")
        return self.function(*given, **named)

    def __get__(self, holder: object, kind: type) -> Any:
        return lambda *given, **named: self(holder, *given, **named)


def bits(model: Any) -> dict[str, bytes]:
    """All tensors of a model, read anew, by name."""
    target = targets.find(model)
    sink = target.sink(model)
    return {name: np.asarray(sink.read(name)).tobytes() for name in target.skeleton(model)}


# Where it fails: when a tensor is read from the source, when one is written, when it is told of
# one, and by an interrupt at that time.
POINTS = ("read", "write", "progress", "interrupt")


@pytest.fixture
def sources(tmp_path: Path) -> Callable[[str, str], Path]:
    def made(kind: str, names: str) -> Path:
        path = tmp_path / f"{kind} {names}.safetensors"
        if not path.exists():
            rg.save(filled(kind if names == "own" else "torch", values(1)), path)
        return path

    return made


@pytest.mark.parametrize("names", ["own", "torch"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_at_each_tensor(
    kind: str,
    point: str,
    names: str,
    sources: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`names`: whether the source has the model's own names and layouts, so that values only need
    to be copied, or PyTorch's."""
    path, model = sources(kind, names), filled(kind, values(2))
    error = KeyboardInterrupt if point == "interrupt" else Injected
    failing = Failing(lambda *_: None, error)
    if point == "read":
        failing = Failing(Checkpoint.read, error)
        monkeypatch.setattr(Checkpoint, "read", failing)
    elif point == "write":
        held = type(targets.find(model).sink(model))
        failing = Failing(held.write, error)
        monkeypatch.setattr(held, "write", failing)
    progress = failing if point in ("progress", "interrupt") else None
    before, other = bits(model), filled(kind, values(2))
    failing.calls = 0
    receipt = rg.load(path, other, progress=progress)
    many = failing.calls
    assert many >= len(receipt.loaded) or point == "write"
    for at in range(1, many + 1):
        failing.at, failing.calls = at, 0
        with pytest.raises((Exception, KeyboardInterrupt)) as raised:
            rg.load(path, model, progress=progress)
        failing.at = -1
        assert "injected" in str(raised.value)
        assert bits(model) == before
        if isinstance(raised.value, TransferError):
            assert "as it was" in str(raised.value)
    loaded = rg.load(path, model).model
    assert bits(loaded) == bits(filled(kind, values(1)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("keras")])
def test_a_large_model_names_what_is_not_as_it_was(
    kind: str, sources: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model whose tensors are replaced nothing is kept. What fails once is done again;
    what fails twice leaves the tensors that are told, and no others."""
    monkeypatch.setattr(transfer, "BUDGET", 0)
    path = sources(kind, "own")
    target = targets.find(filled(kind, values(1)))
    held = type(target.sink(filled(kind, values(1))))
    wanted = bits(filled(kind, values(1)))
    for lasting in (False, True):
        for after in range(9):
            model = filled(kind, values(2))
            before, count = bits(model), len(bits(model))
            failing = _After(held.write, count + after, lasting=lasting)
            with monkeypatch.context() as patch:
                patch.setattr(held, "write", failing)
                try:
                    rg.load(path, model)
                except TransferError as error:
                    now = bits(model)
                    assert lasting
                    assert {name for name in now if now[name] != before[name]} == {*error.problems}
                    assert "Injected: injected" in str(error)
                    assert "memory" not in str(error)
                    told = "as it was" if not after else f"{after} of {count} tensors"
                    assert told in str(error)
                    assert after < count
                except Injected as error:
                    assert not lasting
                    assert "all tensors had their new values" in error.__notes__[0]
                    assert bits(model) == wanted
                else:
                    assert after >= count
                    assert bits(model) == wanted


class _After(Failing):
    """Raises at one call, or from there on."""

    def __init__(self, function: Callable[..., Any], after: int, *, lasting: bool) -> None:
        super().__init__(function, Injected)
        self.after, self.lasting = after, lasting

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.after + 1 or (self.lasting and self.calls > self.after):
            raise self.error("injected")
        return self.function(*given, **named)


def test_copies_that_cannot_fail_name_what_they_may_have_changed(
    sources: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sources("torch", "own")
    for at in range(1, 9):
        model = filled("torch", values(2))
        before = bits(model)
        failing = Failing(copying.copy, Injected)
        failing.at = at
        with monkeypatch.context() as patch:
            patch.setattr(copying, "copy", failing)
            with pytest.raises(TransferError, match="Injected: injected") as raised:
                rg.load(path, model)
        now = bits(model)
        assert {name for name in now if now[name] != before[name]} <= {*raised.value.problems}


def test_short_memory_is_another_failure() -> None:
    class ResourceExhaustedError(Exception):
        """As TensorFlow calls it."""

    said = (MemoryError(), OSError(12, "x"), ResourceExhaustedError("OOM when allocating"),
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))  # fmt: skip
    assert all(renewing._of_memory(error) for error in said)
    others = (OSError(5, "x"), Injected("x"), ValueError("shape"), TimeoutError())
    assert not any(renewing._of_memory(error) for error in others)
