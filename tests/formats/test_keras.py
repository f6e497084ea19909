"""The three Keras files, written by Keras itself and compared with the model's own weights."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError

pytest.importorskip("h5py")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")

from places import REAL


def sequential() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.SeparableConv2D(5, 3, padding="same"),
            layers.PReLU(shared_axes=[1, 2]),
            layers.BatchNormalization(scale=False, center=False),
            layers.Conv2DTranspose(3, 2),
            layers.GlobalAveragePooling2D(),
            layers.LayerNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )


def functional() -> Any:
    layers = keras.layers
    inputs = keras.Input((8,), dtype="int32")
    x = layers.Embedding(11, 6)(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(6))(x)
    x = x + layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LayerNormalization(center=False)(x)
    x = layers.GRU(3)(x)
    a = layers.Dense(4, name="zz_first")(x)
    b = layers.Dense(4, name="aa_second")(x)
    return keras.Model(inputs, [layers.Add()([a, b]), layers.Dense(1, use_bias=False)(b)])


def nested() -> Any:
    layers = keras.layers
    inner = keras.Sequential(
        [layers.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()],
        name="inner",
    )
    side = keras.Input((8, 8, 4))
    sub = keras.Model(side, layers.Conv2D(4, 1, name="squeeze")(inner(side)), name="block")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = layers.Flatten()(sub(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def many() -> Any:
    """Thirteen layers of one class: sorted as text, the eleventh comes second."""
    layers = [keras.layers.Dense(5 + i) for i in range(13)]
    return keras.Sequential([keras.layers.Input((3,)), *layers])


def subclassed() -> Any:
    class Tail(keras.layers.Layer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.blocks = [keras.layers.Dense(4), keras.layers.Dense(4)]

        def call(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.zebra = keras.layers.Dense(4)
            self.apple = keras.layers.Dense(4)
            self.tail = Tail()

        def call(self, x: Any) -> Any:
            return self.tail(self.apple(self.zebra(x)))

    model = Own()
    model(np.zeros((1, 3), "float32"))
    return model


CONFIGURED = [sequential, functional, nested, many]


def model_of(make: Callable[[], Any]) -> Any:
    # Unnamed layers are numbered per process: another model's numbers come first.
    keras.layers.Dense(1)
    keras.layers.Conv2D(1, 1)
    model = make()
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape).astype("float32"))
    return model


def saved(model: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


def tail(path: str) -> str:
    """Layer and variable. What stands before them differs between versions of Keras."""
    return "/".join(path.split("/")[-2:])


def weights_of(found: checkpoints.Checkpoint) -> list[str]:
    return [name for name, info in found.items() if info.kind == "weight"]


@pytest.mark.parametrize("make", CONFIGURED)
def test_keras_archive_has_the_models_own_names_order_and_values(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model = model_of(make)
    with checkpoints.open(saved(model, tmp_path / "m.keras")) as found:
        assert (found.format, found.framework, found.order) == ("keras_zip", "keras", "definition")
        names = weights_of(found)
        assert [tail(name) for name in names] == [tail(v.path) for v in model.weights]
        for name, variable in zip(names, model.weights, strict=True):
            info = found[name]
            assert info.role == variable.name
            assert info.shape == tuple(variable.shape)
            np.testing.assert_array_equal(found.read(name), np.asarray(variable))
        assert json.loads(found.metadata["model_config"])["config"]["layers"]
        assert found.metadata["keras_version"]


@pytest.mark.parametrize("make", CONFIGURED)
def test_weights_file_has_values_and_no_wrong_name_and_claims_no_order(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model = model_of(make)
    with checkpoints.open(saved(model, tmp_path / "m.weights.h5")) as found:
        assert (found.format, found.order) == ("keras_weights_h5", "stored")
        names = weights_of(found)
        assert len(names) == len(model.weights)
        by_values = {np.asarray(variable).tobytes(): variable for variable in model.weights}
        unnamed = 0
        for name in names:
            variable = by_values.pop(found.read(name).tobytes())
            assert name.split("/")[-2] == variable.path.split("/")[-2]
            assert found[name].role in ("", variable.name)
            unnamed += tail(name) != tail(variable.path)
        assert not by_values
        # A LayerNormalization of one variable does not say which one it is.
        assert unnamed == (1 if make is functional else 0)


@pytest.mark.parametrize("make", CONFIGURED)
def test_legacy_file_has_names_order_and_values(make: Callable[[], Any], tmp_path: Path) -> None:
    model = model_of(make)
    with checkpoints.open(saved(model, tmp_path / "m.h5")) as found:
        assert (found.format, found.order) == ("keras_h5", "definition")
        assert found.container == "model_weights"
        names = weights_of(found)
        assert len(names) == len(model.weights)
        by_path = {variable.path: variable for variable in model.weights}
        # A name is the HDF5 path: the layer's group, then the variable's path. Inside one nested
        # model the legacy writer puts what is trained before what is not.
        assert {name.partition("/")[2] for name in names} == set(by_path)
        tops = list(dict.fromkeys(name.partition("/")[0] for name in names))
        assert tops == [layer.name for layer in model.layers if layer.weights]
        for name in names:
            variable = by_path[name.partition("/")[2]]
            np.testing.assert_array_equal(found.read(name), np.asarray(variable))
            assert found[name].role == variable.name


@pytest.mark.parametrize("suffix", ["m.keras", "m.weights.h5", "m.h5"])
def test_modules_agree_between_the_three_files(suffix: str, tmp_path: Path) -> None:
    expected = {
        "kernel": {"Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense"},
        "gamma": {"BatchNormalization", "LayerNormalization"},
        "alpha": {"PReLU"},
        "pointwise_kernel": {"SeparableConv2D"},
    }
    with checkpoints.open(saved(model_of(sequential), tmp_path / suffix)) as found:
        for role, modules in expected.items():
            assert {info.module for info in found.values() if info.role == role} == modules
    with checkpoints.open(saved(model_of(functional), tmp_path / f"f{suffix}")) as found:
        modules = {i.module for i in found.values() if i.role == "recurrent_kernel"}
        assert modules == {"LSTM", "GRU"}
        assert {i.module for n, i in found.items() if "/query/" in n} == {"EinsumDense"}


def test_subclassed_models_claim_no_order(tmp_path: Path) -> None:
    model = model_of(subclassed)
    for name in ("m.weights.h5", "m.keras"):
        with checkpoints.open(saved(model, tmp_path / name)) as found:
            assert found.order == "stored"
            assert sorted(found.read(n).tobytes() for n in weights_of(found)) == sorted(
                np.asarray(v).tobytes() for v in model.weights
            )
            zebra = np.asarray(model.zebra.kernel)
            np.testing.assert_array_equal(found.read(f"{model.zebra.name}/kernel"), zebra)
            assert len([n for n in found if n.startswith(f"{model.tail.name}/")]) == 4


def test_seed_states_are_counters(tmp_path: Path) -> None:
    model = model_of(sequential)
    for name in ("m.keras", "m.weights.h5"):
        with checkpoints.open(saved(model, tmp_path / name)) as found:
            counters = [n for n, info in found.items() if info.kind == "counter"]
            assert all(n.endswith("seed_generator/seed_generator_state") for n in counters)
            # Whether Keras saves it depends on its version and on whether the layer was ever run.
            assert len(counters) <= 1
            assert len(weights_of(found)) == len(model.weights)


@pytest.mark.parametrize("suffix", ["m.keras", "m.weights.h5", "m.h5"])
def test_optimizer_state_stays_apart(suffix: str, tmp_path: Path) -> None:
    model = model_of(many)
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 3)), np.zeros((2, 17)), verbose=0)
    path = saved(model, tmp_path / suffix)
    with checkpoints.open(path) as found:
        assert len(found) == len(model.weights)
        (state,) = [name for name in found.containers if name.startswith("optimizer")]
        assert any(state in note for note in found.notes)
    with checkpoints.open(path, container=state) as found:
        assert len(found) == 2 + 2 * len(model.weights)
        assert [info.kind for info in found.values()].count("counter") == 1


@pytest.mark.parametrize("suffix", ["m.keras", "m.weights.h5", "m.h5"])
def test_slices(suffix: str, tmp_path: Path) -> None:
    model = model_of(many)
    with checkpoints.open(saved(model, tmp_path / suffix)) as found:
        name = weights_of(found)[4]
        whole = found.read(name)
        part = found.read(name, (slice(1, 4), slice(0, 2)))
        np.testing.assert_array_equal(part, whole[1:4, 0:2])
        assert part.flags.owndata or not part.flags.writeable


def test_bfloat16(tmp_path: Path) -> None:
    import ml_dtypes

    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    for name in ("m.keras", "m.weights.h5"):
        with checkpoints.open(saved(model, tmp_path / name)) as found:
            (kernel, _) = found
            assert found[kernel].dtype == "bfloat16"
            assert found.read(kernel).dtype == ml_dtypes.bfloat16
            expected = np.asarray(model.weights[0].value).astype("float32")
            np.testing.assert_array_equal(found.read(kernel).astype("float32"), expected)


def test_compressed_archive_is_read_like_a_stored_one(tmp_path: Path) -> None:
    plain = saved(model_of(nested), tmp_path / "m.keras")
    packed = tmp_path / "packed.keras"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with checkpoints.open(plain) as a, checkpoints.open(packed) as b:
        assert dict(a) == dict(b)
        for name in a:
            np.testing.assert_array_equal(a.read(name), b.read(name))


def test_archive_without_name_attributes_is_numbered_by_class(tmp_path: Path) -> None:
    """Early Keras 3 wrote no names into the store; the config alone tells them."""
    import io

    import h5py

    model = model_of(nested)
    plain = saved(model, tmp_path / "m.keras")
    bare = tmp_path / "bare.keras"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bare, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".h5"):
                buffer = io.BytesIO(data)
                with h5py.File(buffer, "r+") as file:
                    groups: list[Any] = []
                    file.visititems(lambda _, found, groups=groups: groups.append(found))
                    for group in groups:
                        if "name" in group.attrs:
                            del group.attrs["name"]
                data = buffer.getvalue()
            target.writestr(name, data)
    with checkpoints.open(bare) as found:
        assert [tail(n) for n in weights_of(found)] == [tail(v.path) for v in model.weights]


def test_archive_with_a_broken_config_still_lists(tmp_path: Path) -> None:
    plain = saved(model_of(many), tmp_path / "m.keras")
    odd = tmp_path / "odd.keras"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(odd, "w") as target:
        target.writestr("config.json", "[" * 100_000)
        target.writestr("metadata.json", "{}")
        target.writestr("model.weights.h5", source.read("model.weights.h5"))
    with checkpoints.open(odd) as found:
        assert len(found) == 26
    with zipfile.ZipFile(odd, "a") as target:
        target.writestr("extra", b"")
    no_store = tmp_path / "no.keras"
    with zipfile.ZipFile(no_store, "w") as target:
        target.writestr("config.json", "{}")
        target.writestr("model.weights.npz", b"")
    with pytest.raises(FormatError):
        checkpoints.open(no_store)


def test_promised_weights_that_are_missing(tmp_path: Path) -> None:
    import h5py

    path = saved(model_of(many), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        group = next(iter(file["model_weights"]))
        del file["model_weights"][group]
    with pytest.raises(CorruptFile):
        checkpoints.open(path)


def test_layer_names_in_several_attributes(tmp_path: Path) -> None:
    """HDF5 attributes hold 64 KiB; Keras cuts longer lists into numbered ones."""
    import h5py

    path = tmp_path / "chunked.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names0"] = np.array([b"zeta"])
        file.attrs["layer_names1"] = np.array([b"alpha"])
        for layer in ("alpha", "zeta"):
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{layer}_W".encode(), f"{layer}_b".encode()])
            group[f"{layer}_W"] = np.ones((2, 2), ">f4")
            group[f"{layer}_b"] = np.ones(2, "float32")
    with checkpoints.open(path) as found:
        assert list(found) == ["zeta/zeta_W", "zeta/zeta_b", "alpha/alpha_W", "alpha/alpha_b"]
        assert [info.role for info in found.values()] == [""] * 4
        assert found["zeta/zeta_W"].dtype == "float32"
        assert found.read("zeta/zeta_W").dtype == np.dtype("=f4")
        np.testing.assert_array_equal(found.read("zeta/zeta_W"), np.ones((2, 2)))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real checkpoints here")
@pytest.mark.parametrize(
    ("file", "weights", "first", "module"),
    [
        ("magika-v1/model.h5", 12, "dense/dense/kernel:0", "Dense"),
        ("mlperf-tiny/vww_96.h5", 164, "conv2d/conv2d/kernel:0", "Conv2D"),
        (
            "mini-xception/fer2013_mini_XCEPTION.102-0.66.hdf5",
            None,
            "conv2d_1/conv2d_1_1/kernel:0",
            "Conv2D",
        ),
        (
            "mini-xception/gender_mini_XCEPTION.21-0.95.hdf5",
            None,
            "conv2d_1/conv2d_1/kernel:0",
            "Conv2D",
        ),
    ],
)
def test_real_files(file: str, weights: int | None, first: str, module: str) -> None:
    import h5py

    with checkpoints.open(REAL / file) as found, h5py.File(REAL / file, locking=False) as raw:
        assert (found.container, found.order) == ("model_weights", "definition")
        assert found.containers["model_weights"] == len(found)
        if weights is not None:
            assert len(found) == weights
        assert next(iter(found)) == first
        assert found[first].module == module
        assert all(info.module and info.role for info in found.values())
        assert found.metadata["backend"] == "tensorflow"
        for name in found:
            np.testing.assert_array_equal(found.read(name), raw["model_weights"][name][()])


@pytest.mark.skipif(not REAL.is_dir(), reason="no real checkpoints here")
def test_real_totals_from_their_sources() -> None:
    with checkpoints.open(REAL / "magika-v1/model.h5") as found:
        assert sum(info.size for info in found.values()) == 260_465
    with checkpoints.open(REAL / "magika-v1/model.h5", container="optimizer_weights") as found:
        assert len(found) == 25
        assert [n for n, i in found.items() if i.kind == "counter"] == ["iteration:0"]
    with checkpoints.open(REAL / "mlperf-tiny/vww_96.h5", container="") as found:
        assert len(found) == 385
