"""Transfer: values copied once, nothing written before it is certain, memory that is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import regraft as rg
from regraft import copying, transfer, values
from regraft.errors import TransferError
from regraft.reports import statistics
from regraft.values import not_finite


def layers(seed: int, count: int = 4, device: str = "cpu") -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.device(device):
        return torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(count)))


def state(model: torch.nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7),
    )
)
def test_a_survey_is_of_all_bytes(array: np.ndarray[Any, Any]) -> None:
    seen = copying.survey(array)
    assert seen.odd == not_finite(array)
    there = np.zeros_like(array)
    copied = copying.copy(array, there)
    assert copied.meant == seen
    assert copied.held == seen.digest == transfer.fingerprint(array.T.copy().T)
    assert there.tobytes() == array.tobytes()


def test_large_arrays_are_surveyed_in_blocks() -> None:
    array = np.random.default_rng(0).normal(size=(3, 1 << 19)).astype(np.float32)
    array[2, -1] = np.nan
    array[0, 0] = np.inf
    copied, interrupt = copying.copy_all([(array, np.empty_like(array)), (array, array)])
    assert interrupt is None
    assert copied[0] == copied[1]
    assert copied[0].meant.odd == 2


def test_memory_that_is_shared_is_found() -> None:
    whole = np.zeros(100)
    overlaps = copying.Overlaps([whole[10:60], whole[20:30]])
    assert overlaps(whole[55:70])
    assert overlaps(whole[:11])
    assert not overlaps(whole[60:])
    assert not overlaps(whole[:10])
    assert not overlaps(whole[15:15])
    assert not copying.Overlaps([])(whole)


def test_a_model_takes_its_own_weights_in_another_order() -> None:
    """Layers exchanged inside one model: all is read before anything is overwritten."""
    model = layers(1)
    before = state(model)
    rules = [rg.rename("0.*", "1.*"), rg.rename("1.*", "2.*"), rg.rename("2.*", "0.*")]
    for source in (model, dict(model.state_dict())):
        rg.load(source, model, rules=rules)
    after = state(model)
    # Twice round by one place each time.
    for here, there in ((0, 2), (1, 0), (2, 1), (3, 3)):
        for leaf in ("weight", "bias"):
            np.testing.assert_array_equal(after[f"{there}.{leaf}"], before[f"{here}.{leaf}"])


def test_progress_that_raises_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, path = layers(2), tmp_path / "m.safetensors"
    rg.convert(layers(1), path)
    before = state(model)

    def stop(name: str, _: int) -> None:
        if name.startswith("2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rg.load(path, model, progress=stop)
    assert all((state(model)[name] == array).all() for name, array in before.items())


def test_a_missing_byte_is_seen_before_the_first_write(tmp_path: Path) -> None:
    model, path = layers(2), tmp_path / "m.safetensors"
    rg.convert(layers(1), path)
    before = state(model)
    with rg.open(path) as checkpoint:
        plan = rg.plan(checkpoint, model)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 4)
        with pytest.raises(rg.CorruptFile):
            rg.apply(plan, checkpoint, model)
    assert all((state(model)[name] == array).all() for name, array in before.items())


def test_a_meta_model_takes_the_pages_of_the_file(tmp_path: Path) -> None:
    """Training it changes neither the file nor what is read from it."""
    path = tmp_path / "m.safetensors"
    source = layers(1)
    rg.convert(source, path)
    written = path.read_bytes()
    model = layers(2, device="meta")
    with rg.open(path) as checkpoint:
        receipt = rg.load(checkpoint, model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
        assert not torch.equal(model[3].bias, source[3].bias)
        again = layers(3)
        assert rg.load(path, again).hashes == receipt.hashes
        assert checkpoint.read("0.bias").flags.writeable is False
    assert path.read_bytes() == written
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_file_that_changes_is_of_unknown_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    rg.convert(layers(1), path)
    receipt = rg.load(path, layers(2))
    assert receipt.source_hash == rg.open(path).sha256
    later = rg.load(path, layers(2))
    rg.convert(layers(3), path, force=True)
    assert later.source_hash == ""


def test_former_values_go_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a probe whose outputs differ everything is put back, also from a temporary file."""
    monkeypatch.setattr("regraft.journal.Journal.__init__.__defaults__", (100,))
    model, path = layers(2), tmp_path / "m.safetensors"
    rg.convert(layers(1), path)
    before = state(model)
    probe = rg.Probe(inputs=np.ones((1, 16), np.float32), outputs=np.ones((1, 16), np.float32))
    for room in (True, False):
        if not room:
            monkeypatch.setattr("tempfile.TemporaryFile", no_room)
        with pytest.raises(rg.VerificationFailed):
            rg.load(path, model, probe=probe)
        assert all((state(model)[name] == array).all() for name, array in before.items())


def no_room() -> None:
    raise OSError("no space left")


def test_a_model_that_changes_what_it_is_given(tmp_path: Path) -> None:
    class Rounds(torch.nn.Parameter):
        def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            return super().copy_(source.round())

    model, path = layers(2), tmp_path / "m.safetensors"
    rg.convert(layers(1), path)
    model[1].weight = Rounds(model[1].weight.detach())
    before = state(model)
    with pytest.raises(TransferError, match="other values"):
        rg.load(path, model)
    before.pop("1.weight")  # which cannot be put back either
    assert all((state(model)[name] == array).all() for name, array in before.items())


def test_what_a_model_writes_to_its_pages_is_its_own(tmp_path: Path) -> None:
    """Neither an array of the open file, nor another model from it, nor the file changes; a
    difference that lets go of what it has read leaves the model's pages alone."""
    path = tmp_path / "m.safetensors"
    torch.manual_seed(0)
    rg.convert(torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.Linear(256, 512)), path)
    with torch.device("meta"):
        model, twin = (
            torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.Linear(256, 512))
            for _ in range(2)
        )
    written = path.read_bytes()
    with rg.open(path) as checkpoint:
        held = checkpoint.read("0.weight")
        before = held.copy()
        rg.load(checkpoint, model)
        rg.load(checkpoint, twin)
        with torch.no_grad():
            model[0].weight += 1
        tuned = state(model)
        assert rg.diff(checkpoint, model)["0.weight"].status == "moved"
        values.let_go(checkpoint.read("0.weight"))
        np.testing.assert_array_equal(state(model)["0.weight"], tuned["0.weight"])
        np.testing.assert_array_equal(tuned["0.weight"], before + 1)
        for array in (held, checkpoint.read("0.weight"), state(twin)["0.weight"]):
            np.testing.assert_array_equal(array, before)
    assert path.read_bytes() == written


def resident() -> int:
    """KiB of mapped files in this process's memory."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    ("ending", "width"),
    [(".safetensors", 700), (".safetensors", 1 << 18), (".npz", 700), (".packed.npz", 1 << 18)],
)
def test_what_was_looked_at_does_not_stay_in_memory(
    ending: str, width: int, tmp_path: Path
) -> None:
    """Of small tensors neither, and of those that were unpacked into a nameless file."""
    draw = np.random.default_rng(0)
    made = {f"t{n}": draw.normal(size=width).astype("f4") for n in range((1 << 21) // width)}
    path = tmp_path / f"x{ending}"
    if ending == ".packed.npz":
        made = {"all": np.concatenate([*made.values()] * 5)}  # more than is unpacked in memory
        np.savez_compressed(path, **made)  # pyright: ignore[reportArgumentType]
    else:
        rg.convert(made, path)
    with rg.open(path) as found:
        for _ in range(2):  # at first libraries' own pages come, too
            before = resident()
            told = dict(statistics.measured(found.values(), found.read, {}))
        assert resident() - before < sum(a.nbytes for a in made.values()) / 4 / 1024
        for info, seen in told.items():
            assert seen.max == pytest.approx(made[info.name].max())
            np.testing.assert_array_equal(found.read(info.name), made[info.name])


def test_what_stays_where_it_is(tmp_path: Path) -> None:
    """What was unpacked is not held until the end: all of a packed file would be in memory."""
    rg.convert({"x": np.ones(10)}, tmp_path / "plain.safetensors")
    np.savez_compressed(tmp_path / "packed.npz", x=np.ones(10))
    assert values.stays(rg.open(tmp_path / "plain.safetensors").read("x"))
    assert not values.stays(rg.open(tmp_path / "packed.npz").read("x"))
    assert values.stays(torch.ones(10).numpy()[2:])
    assert not values.stays(np.frombuffer(bytes(16), np.int32).reshape(2, 2))
    assert not values.stays(np.ones((2, 5))[1:])


def test_an_interrupt_waits_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(np.full(100, i), np.zeros(100, int)) for i in range(9)]
    waits = [KeyboardInterrupt, KeyboardInterrupt]
    wait = copying.wait

    def interrupted(futures: Any) -> None:
        if waits:
            raise waits.pop()
        wait(futures)

    monkeypatch.setattr(copying, "wait", interrupted)
    copied, interrupt = copying.copy_all(pairs)
    assert isinstance(interrupt, KeyboardInterrupt)
    assert [one.held for one in copied] == [transfer.fingerprint(a) for a, _ in pairs]
    assert all((a == b).all() for a, b in pairs)


def test_pages_of_another_file_are_not_taken(tmp_path: Path) -> None:
    """The path may be another file's by the time a model wants its pages."""
    path = tmp_path / "m.safetensors"
    torch.manual_seed(0)
    rg.convert(torch.nn.Linear(512, 256), path)
    with rg.open(path) as checkpoint:
        array = checkpoint.read("weight")
        before = array.copy()
        assert values.can_be_private(array)
        rg.convert(torch.nn.Linear(512, 256), path, force=True)
        np.testing.assert_array_equal(values.private(array), before)
