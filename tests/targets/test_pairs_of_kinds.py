"""All targets from all kinds of sources: plan, apply, read back, put back, the way back.

Targets and formats are those of the registries: one without a kind, or without a sample, fails.
"""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft as rg
from formats import samples
from regraft import formats, targets
from regraft.errors import RegraftError, TransferError
from regraft.journal import Journal
from regraft.tensors import numpy_dtype
from targets import kinds
from targets.kinds import KINDS, SHAPES

WRITERS = [name for name in formats.names() if hasattr(formats.load(name), "write")]
# What writers are given that do not write just any model: Keras' layout is told by a Keras model
# only, a file of Flax is read as one of Flax, and no counters are in those of numpy and GGML.
FROM = {
    "keras_weights_h5": "keras functional",
    "flax_msgpack": "linen",
    "npz": "arrays",
    "gguf": "arrays",
}


def same(found: kinds.Values, wanted: kinds.Values) -> None:
    for name in SHAPES:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_every_target_has_a_kind() -> None:
    assert {kind.target for kind in KINDS.values()} | kinds.ABSENT == set(targets.names())


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_live_to_live(source: str, target: str) -> None:
    wanted = kinds.values(1)
    ours, theirs = kinds.filled(source, wanted), kinds.filled(target, kinds.values(2))
    receipt = rg.load(ours, theirs)
    same(kinds.held(target, receipt.model), wanted)
    assert set(receipt.hashes) >= set(KINDS[target].names.values())
    same(kinds.held(source, ours), wanted)  # a source is only read
    way_back = receipt.plan.inverse()
    back = rg.apply(way_back, receipt.model, kinds.filled(source, kinds.values(3)), partial=True)
    same(kinds.held(source, back.model), wanted)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_files_to_live(writer: str, target: str, tmp_path: Path) -> None:
    """From every format that can be written, into every kind; and back into a file."""
    wanted, source = kinds.values(1), FROM.get(writer, "torch")
    path = tmp_path / f"model{formats.load(writer).SUFFIXES[0]}"
    rg.convert(kinds.filled(source, wanted), path)
    receipt = rg.load(path, kinds.filled(target, kinds.values(2)))
    same(kinds.held(target, receipt.model), wanted)
    again = tmp_path / f"again{formats.load(writer).SUFFIXES[0]}"
    if FROM.get(writer, target) == target:
        rg.save(receipt.model, again)
        assert rg.diff(receipt.model, again).same


def flat_targets(values: samples.Values) -> dict[str, Any]:
    """Targets that may have tensors of any name: a mapping, an object, a tree of JAX."""
    import jax.numpy as jnp

    arrays = {name: np.zeros(array.shape, array.dtype) for name, array in values.items()}

    class Holder(kinds.Holder):
        def __init__(self) -> None:
            self.held = {name: array.copy() for name, array in arrays.items()}

    tree = {n: jnp.zeros(a.shape, a.dtype) for n, a in arrays.items() if a.dtype.itemsize < 8}
    # How a kernel of a file is to be laid out in a tree is another question.
    tree = {name: leaf for name, leaf in tree.items() if leaf.ndim < 2}
    return {"arrays": arrays, "objects": Holder(), "jax": tree}


@pytest.mark.parametrize("name", formats.names())
def test_every_format_to_targets_of_its_names(name: str, tmp_path: Path) -> None:
    suffix, make = samples.all_makers()[name]
    path = tmp_path / f"sample{suffix}"
    make(path)
    with rg.open(path) as checkpoint:
        # Constants of a graph are not planned for.
        names = [name for name, info in checkpoint.items() if info.kind == "weight"]
        given = {name: np.array(checkpoint.read(name)) for name in names}
        for model in flat_targets(given).values():
            rules = [rg.rename(n, n) for n in targets.find(model).skeleton(model)]
            allowed = [w.code for w in rg.plan(checkpoint, model, rules=rules).warnings]
            unused = [
                name for name in checkpoint if name not in targets.find(model).skeleton(model)
            ]
            receipt = rg.load(checkpoint, model, rules=rules, unused=unused, accept=allowed)
            read = targets.find(receipt.model).sink(receipt.model)
            for tensor, spec in receipt.plan.target.tensors.items():
                assert read.read(tensor).dtype == numpy_dtype(spec.dtype)
                np.testing.assert_array_equal(read.read(tensor), given[tensor])


class Broken(RegraftError):
    pass


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("after", [0, 3, len(SHAPES) - 1])
@pytest.mark.parametrize("error", [MemoryError, Broken, KeyboardInterrupt])
def test_a_failure_puts_everything_back(
    target: str, after: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails once, at the first tensor, half-way and at the last; values go to a
    temporary file meanwhile."""
    before = kinds.values(2)
    model = kinds.filled(target, before)
    sink_type = type(targets.find(model).sink(model))
    write, count = sink_type.write, [0]

    def failing(self: Any, name: str, array: Any) -> None:
        count[0] += 1
        if count[0] == after + 1:
            raise error("injected")
        write(self, name, array)

    monkeypatch.setattr(sink_type, "write", failing)
    monkeypatch.setattr(sink_type, "memory", lambda *_: None)
    monkeypatch.setattr(Journal, "__init__", partialmethod(Journal.__init__, budget=0))
    ours = kinds.filled("torch" if target != "torch" else "nnx", kinds.values(1))
    count[0] = 0
    with pytest.raises((TransferError, Broken, KeyboardInterrupt), match="injected"):
        rg.load(ours, model)
    same(kinds.held(target, model), before)


@pytest.mark.parametrize("target", KINDS)
def test_a_source_that_fails_puts_everything_back(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    rg.convert(kinds.filled("torch", kinds.values(1)), path)
    before = kinds.values(2)
    model = kinds.filled(target, before)
    with rg.open(path) as checkpoint:
        plan = rg.plan(checkpoint, model)
        read = checkpoint.read

        def failing(name: str, slices: Any = None) -> Any:
            if name == "head.bias":
                raise OSError("injected")
            return read(name, slices)

        monkeypatch.setattr(checkpoint, "read", failing)
        with pytest.raises(TransferError, match="injected"):
            rg.apply(plan, checkpoint, model)
    same(kinds.held(target, model), before)
