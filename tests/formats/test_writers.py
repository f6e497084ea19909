"""What writers owe beyond the conformance tests: Keras loads its layout, and losses are told."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import regraft as rg
from formats import test_keras as models
from regraft import checkpoints, formats, keras_layout, lineage
from regraft.errors import CorruptFile, FormatError, MissingDependency
from regraft.tensors import TensorInfo

layers = keras.layers


def shared() -> Any:
    """A layer that is used twice, and one inside a nested model."""
    twice = layers.Dense(4, name="twice")
    inner = keras.Sequential([layers.Input((4,)), twice, layers.Dropout(0.5), layers.Dense(3)])
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(inner(twice(twice(inputs)))))


def compiled() -> Any:
    model = models.sequential()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((2, 16, 16, 3)), np.zeros((2, 2)), verbose=0)
    return model


def recurrent() -> Any:
    inputs = keras.Input((6, 5))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True, dropout=0.2))(inputs)
    x = layers.RNN([layers.GRUCell(3), layers.SimpleRNNCell(2)], return_sequences=True)(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(2))(x))


def brain() -> Any:
    inputs = keras.Input((8, 6))
    x = layers.MultiHeadAttention(2, 3, dtype="bfloat16")(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float16")(x))


def normalized() -> Any:
    model = keras.Sequential([layers.Input((5,)), layers.Normalization(), layers.Dense(2),
                              layers.GaussianNoise(0.1), layers.UnitNormalization()])  # fmt: skip
    model.layers[0].adapt(np.random.default_rng(0).normal(size=(20, 5)))
    return model


MODELS = [models.sequential, models.functional, models.nested, models.many, models.subclassed,
          shared, compiled, recurrent, brain, normalized]  # fmt: skip


def randomized(model: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if not variable.name.startswith("seed"):
            variable.assign(generator.normal(size=variable.shape).astype("float32"))
    return model


def loads_in_keras(path: Path, model: Any, make: Callable[[], Any]) -> None:
    """Keras' `load_weights` brings every variable into a model of other automatic names."""
    layers.Dense(1)
    layers.Conv2D(1, 1)
    other = randomized(make(), 99)
    with warnings.catch_warnings():
        # Optimizer variables are training state and not in the file; Keras remarks on it.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        other.load_weights(path)
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("make", MODELS)
def test_keras_loads_what_a_live_model_saved(make: Callable[[], Any], tmp_path: Path) -> None:
    model = randomized(make(), 1)
    path = rg.save(model, tmp_path / "m.weights.h5")
    loads_in_keras(path, model, make)
    live = rg.plan(model, model).target.tensors
    with checkpoints.open(path) as found:
        assert (found.format, found.notes) == ("keras_weights_h5", ())
        weights = [name for name, info in found.items() if info.kind == "weight"]
        assert set(weights) <= set(found)
        assert list(found)[: len(live)] == list(live)


@pytest.mark.parametrize("make", MODELS)
def test_keras_loads_what_its_own_files_became(make: Callable[[], Any], tmp_path: Path) -> None:
    """Directly, and by way of a format that knows nothing of Keras."""
    model = randomized(make(), 2)
    for ending in (".weights.h5", ".keras"):
        if ending == ".keras" and make is models.subclassed:
            continue
        source = models.saved(model, tmp_path / f"source{ending}")
        direct = rg.convert(source, tmp_path / f"direct{ending}.weights.h5")
        loads_in_keras(direct, model, make)
        between = rg.convert(source, tmp_path / f"between{ending}.safetensors")
        back = rg.convert(between, tmp_path / f"back{ending}.weights.h5")
        loads_in_keras(back, model, make)
        with checkpoints.open(source) as one, checkpoints.open(back) as other:
            assert set(one) == set(other)
            for name in one:
                assert one.read(name).tobytes() == other.read(name).tobytes()


def test_groups_and_names_are_those_of_keras(tmp_path: Path) -> None:
    for make in (models.functional, models.nested, models.subclassed):
        model = randomized(make(), 3)
        rg.save(model, tmp_path / "ours.weights.h5", force=True)
        models.saved(model, tmp_path / "theirs.weights.h5")
        listed = []
        for name in ("ours", "theirs"):
            found: dict[str, Any] = {}
            with h5py.File(tmp_path / f"{name}.weights.h5") as file:
                file.visititems(
                    lambda path, thing, found=found: found.update(
                        {path: thing.attrs.get("name", getattr(thing, "shape", None))}
                    )
                )
            listed.append(found)
        assert listed[0] == listed[1]


def test_lineage_is_in_the_file_and_leads_back(tmp_path: Path) -> None:
    source = randomized(models.nested(), 4)
    rg.save(source, tmp_path / "base.weights.h5")
    model = randomized(models.nested(), 5)
    receipt = rg.load(tmp_path / "base.weights.h5", model, accept=["negative-variance"])
    path = rg.save(model, tmp_path / "tuned.weights.h5", receipt=receipt)
    loads_in_keras(path, model, models.nested)
    told = rg.trace(path)
    assert told.source == "base.weights.h5"
    assert set(told.counts()) == {"loaded"}
    assert rg.diff(tmp_path / "base.weights.h5", path).same
    with h5py.File(path) as file:
        stored = b"".join(file.attrs["regraft.metadata0"]).decode()
    assert lineage.KEY in json.loads(stored)


def test_what_keras_cannot_load_says_so(tmp_path: Path) -> None:
    values = {"conv/kernel": np.arange(4.0), "bn": np.ones(2, np.float32)}
    items = [(TensorInfo(n, v.shape, v.dtype.name), lambda v=v: v) for n, v in values.items()]
    path = tmp_path / "x.weights.h5"
    checkpoints.write(path, items)
    with checkpoints.open(path) as found:
        assert list(found) == list(values)
        assert "load_weights cannot read it" in found.notes[0]
        assert "rg.save" in found.notes[0]
    model = keras.Sequential([layers.Input((2,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="dense"):
        model.load_weights(path)


def test_a_layout_of_other_tensors_is_not_taken(tmp_path: Path) -> None:
    model = randomized(models.many(), 6)
    source = rg.save(model, tmp_path / "x.safetensors")
    with checkpoints.open(source) as found:
        layout = found.metadata[keras_layout.KEY]
        some = [(info, lambda n=name: found.read(n)) for name, info in list(found.items())[:-1]]
        path = tmp_path / "x.weights.h5"
        checkpoints.write(path, some, {keras_layout.KEY: layout})
        with checkpoints.open(path) as partial:
            assert partial.notes
            assert list(partial) == [info.name for info, _ in some]
            assert partial.metadata[keras_layout.KEY] == layout
        for lie in ("{", "[]", '{"a": 1}', '{"a":{"name":null,"variables":{"0":3}}}', "[" * 9999):
            with pytest.raises(CorruptFile):
                checkpoints.write(tmp_path / "y.weights.h5", some, {keras_layout.KEY: lie})


def test_layouts_that_no_file_can_have(tmp_path: Path) -> None:
    item = [(TensorInfo("w", (2,), "float32"), lambda: np.ones(2, np.float32))]
    good = {"layers/a/vars": {"name": "a", "variables": {"0": "w"}}}
    seed = {"dtype": "uint32", "shape": [2], "values": [1, 2]}
    lies: list[Any] = [
        {"layers//vars": good["layers/a/vars"]},
        {"../vars": good["layers/a/vars"]},
        {"a/vars": {"name": "a", "variables": {"0": "w", "0/1": seed}}},
        {"a/vars": {"name": "a", "variables": {"0": "w", "..": seed}}},
        {"a/vars": {"name": "a", "variables": {"0": "w", "1": {**seed, "dtype": "evil"}}}},
        {"a/vars": {"name": "a", "variables": {"0": "w", "1": {**seed, "shape": [1 << 40]}}}},
        {"a/vars": {"name": "a", "variables": {"0": "w", "1": {**seed, "values": [-1]}}}},
        {"a/vars": {"name": "a", "variables": {"0": "w", "1": {**seed, "dtype": "float4_e2m1fn"}}}},
    ]  # fmt: skip
    path = tmp_path / "x.weights.h5"
    for lie in lies:
        with pytest.raises(FormatError):
            checkpoints.write(path, item, {keras_layout.KEY: json.dumps(lie)})
        assert not list(tmp_path.iterdir())
    good["layers/a/vars"]["variables"]["1"] = seed  # type: ignore[index]
    checkpoints.write(path, item, {keras_layout.KEY: json.dumps(good)})
    with checkpoints.open(path) as found:
        assert list(found) == ["w", "a/1"]
        np.testing.assert_array_equal(found.read("a/1"), [1, 2])


def test_weights_that_keras_would_merge_are_not_called_its_own(tmp_path: Path) -> None:
    """With LoRA Keras saves sums and not its variables: no layout tells these tensors' places."""
    model = keras.Sequential([layers.Input((4,)), layers.Dense(3)])
    model.layers[0].enable_lora(2)
    path = rg.save(model, tmp_path / "x.weights.h5")
    with checkpoints.open(path) as found:
        assert found.notes
        assert len(found) == 4


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b", "a"), ("",), ("a//b",), ("/a",), ("a/",), (".",), ("a/../b",),
              ("a\0b",)],
)  # fmt: skip
def test_names_that_hdf5_cannot_hold(names: tuple[str, ...], tmp_path: Path) -> None:
    value = np.zeros(2, np.float32)
    items = [(TensorInfo(name, (2,), "float32"), lambda: value) for name in names]
    with pytest.raises(FormatError, match="HDF5"):
        checkpoints.write(tmp_path / "x.weights.h5", items)
    assert not list(tmp_path.iterdir())


def test_names_that_mean_something_to_readers_come_back(tmp_path: Path) -> None:
    names = ["vars/0", "layers/dense/vars/0", "model_weights/a", "optimizer/vars/1", "layer_names",
             "state_dict", "_layer_checkpoint_dependencies/x/vars/0", "z", "b.c d/ünï"]  # fmt: skip
    items = [(TensorInfo(n, (1,), "float64"), lambda i=i: np.array([float(i)]))
             for i, n in enumerate(names)]  # fmt: skip
    path = tmp_path / "x.weights.h5"
    checkpoints.write(path, items)
    nameless = tmp_path / "nameless"
    nameless.write_bytes(path.read_bytes())
    for file in (path, nameless):
        with checkpoints.open(file) as found:
            assert list(found) == names
            assert [found.read(name)[0] for name in names] == list(range(len(names)))


@pytest.mark.parametrize("name", [n for n in formats.names() if hasattr(formats.load(n), "write")])
def test_much_metadata_comes_back(name: str, tmp_path: Path) -> None:
    """Lineage of a large model takes megabytes; HDF5 keeps 64 KiB in an attribute."""
    metadata = {lineage.KEY: "".join(chr(33 + i % 900) for i in range(1 << 20)), "b": ""}
    path = tmp_path / f"x{formats.load(name).SUFFIXES[0]}"
    value = np.ones(8, np.float32)
    checkpoints.write(path, [(TensorInfo("w", (8,), "float32"), lambda: value)], metadata)
    with checkpoints.open(path) as found:
        assert {k: v for k, v in found.metadata.items() if k in metadata} == metadata


@pytest.mark.parametrize("ending", [".gguf", ".msgpack"])
def test_more_metadata_than_is_read_back_is_not_written(ending: str, tmp_path: Path) -> None:
    item = [(TensorInfo("w", (1,), "float32"), lambda: np.ones(1, np.float32))]
    with pytest.raises(FormatError, match="metadata"):
        checkpoints.write(tmp_path / f"x{ending}", item, {"a": "x" * (33 << 20)})
    assert not list(tmp_path.iterdir())


def test_attributes_that_lie(tmp_path: Path) -> None:
    value = np.ones(1, np.float32)
    items = [(TensorInfo(n, (1,), "float32"), lambda: value) for n in ("a", "b")]
    for attribute, text in (
        ("regraft.names", '{"a": "x", "b": "x"}'), ("regraft.names", "["), ("regraft.names", "[1]"),
        ("regraft.names", '{"a": 1}'), ("regraft.metadata", '{"a": {}}'),
        ("regraft.metadata", "[" * 50_000),
    ):  # fmt: skip
        path = tmp_path / "x.weights.h5"
        checkpoints.write(path, items, {"k": "v"}, force=True)
        with h5py.File(path, "r+") as file:
            file.attrs[f"{attribute}0"] = np.array([text.encode()])
        with pytest.raises(CorruptFile, match=attribute):
            checkpoints.open(path)


def test_without_h5py_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    item = [(TensorInfo("w", (1,), "float32"), lambda: np.ones(1, np.float32))]
    with pytest.raises(MissingDependency, match=r"regraft\[keras\]"):
        checkpoints.write(tmp_path / "x.weights.h5", item)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"regraft\[gguf\]"):
        checkpoints.write(tmp_path / "x.gguf", item)
    assert not list(tmp_path.iterdir())
