"""Tensors that take new memory: in what order, how much at once, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from regraft import renewing, transfer
from regraft.errors import TransferError
from regraft.renewing import Renewed, renew_all
from regraft.sinks import NewMemory

SIZES = (3, 700, 0, 5000, 40, 5000, 90, 1, 1200)


class Model:
    """Tensors that are replaced, and never changed."""

    def __init__(self, change: Callable[[Any], Any] = lambda array: array) -> None:
        self.tensors: dict[str, Any] = {}
        self.asked: list[int] = []
        self.made: list[int] = []
        self.change = change

    def renewal(self, name: str, size: int) -> Callable[[], NewMemory]:
        def new() -> NewMemory:
            memory = np.full(size, -1.0)
            self.made.append(size)
            self.asked.append(sum(self.made) - sum(len(t) for t in self.tensors.values()))

            def take() -> Any:
                self.tensors[name] = self.change(memory)
                return self.tensors[name]

            return NewMemory(memory, take)

        return new


def wanted(model: Model) -> list[Renewed]:
    generator = np.random.default_rng(0)
    return [
        Renewed(f"t{i}", generator.normal(size=size), model.renewal(f"t{i}", size))
        for i, size in enumerate(SIZES)
    ]


def check(model: Model, given: list[Renewed], found: dict[str, Any]) -> None:
    assert set(found) == {one.name for one in given}
    for one in given:
        np.testing.assert_array_equal(model.tensors[one.name], one.array)
        assert found[one.name].held == found[one.name].meant.digest
        assert found[one.name].held == transfer.fingerprint(one.array)


@pytest.mark.parametrize("change", [lambda array: array, lambda array: array.copy()])
def test_the_largest_come_first_and_few_at_once(
    change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "_ROOM", 6000 * 8)
    model = Model(change)
    given = wanted(model)
    found, interrupt = renew_all(given)
    assert interrupt is None
    check(model, given, found)
    assert model.made == sorted(SIZES, reverse=True)
    assert max(model.asked) <= 6000


def test_what_the_model_changes_is_seen() -> None:
    found, _ = renew_all(wanted(Model(lambda array: array + 1)))
    assert all(one.held != one.meant.digest for name, one in found.items() if name != "t2")


def test_an_interrupt_waits_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [KeyboardInterrupt, None, KeyboardInterrupt]
    wait = renewing.wait

    def interrupted(futures: Any) -> None:
        if waits and (error := waits.pop()):
            raise error
        wait(futures)

    monkeypatch.setattr(renewing, "wait", interrupted)
    model = Model()
    given = wanted(model)
    found, interrupt = renew_all(given)
    assert isinstance(interrupt, KeyboardInterrupt)
    check(model, given, found)


@pytest.mark.parametrize("after", [0, 5])
def test_short_memory_is_told(after: int) -> None:
    """Whether the model is as it was, or not."""
    model = Model()
    given = wanted(model)

    def short(one: Renewed) -> Callable[[], NewMemory]:
        def new() -> NewMemory:
            if len(model.made) >= after:
                raise MemoryError("injected")
            return one.renewal()

        return new

    with pytest.raises(TransferError, match="injected") as raised:
        renew_all([one._replace(renewal=short(one)) for one in given])
    assert ("as it was" in str(raised.value)) == (not model.tensors)
    assert set(raised.value.problems) == set(model.tensors)
    assert bool(model.tensors) == bool(after)


@pytest.mark.parametrize("error", [MemoryError, TimeoutError, SystemExit])
@pytest.mark.parametrize("step", ["memory", "copy", "take"])
def test_a_step_that_fails_is_done_once_more(
    step: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was short for a moment is no failure. What a signal's handler raises waits."""
    calls = 0

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise error("injected")
            return function(*given)

        return called

    def renewal(one: Renewed) -> Callable[[], NewMemory]:
        def new() -> NewMemory:
            made = one.renewal()
            return made._replace(take=once(made.take)) if step == "take" else made

        return once(new) if step == "memory" else new

    if step == "copy":
        monkeypatch.setattr(renewing, "copy", once(renewing.copy))
    model = Model()
    given = wanted(model)
    found, waiting = renew_all([one._replace(renewal=renewal(one)) for one in given])
    check(model, given, found)
    assert waiting is None if error is MemoryError else type(waiting) is error


def test_short_memory_leaves_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two at once there is too little memory; with one there is enough."""
    model = Model()
    given = wanted(model)

    def short(one: Renewed) -> Callable[[], NewMemory]:
        def new() -> NewMemory:
            here = sum(model.made) - sum(len(t) for t in model.tensors.values())
            if here + one.array.size > 5000:
                raise MemoryError("injected")
            return one.renewal()

        return new

    found, waiting = renew_all([one._replace(renewal=short(one)) for one in given])
    assert waiting is None
    check(model, given, found)
