"""Our reading of HDF5 against its own library, on files that the library wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from places import REAL
from regraft import checkpoints
from regraft.errors import FormatError
from regraft.formats._hdf5 import Hdf5

DTYPES = [np.dtype(t) for t in
          ("f2", "f4", "f8", ">f4", ">f8", "i1", "i2", ">i4", "i8", "u1", "u4", ">u8", "?", "c8",
           "c16", ">c8")]  # fmt: skip
NAMES = st.text("abcXYZ_.0189é:", min_size=1, max_size=12).filter(lambda n: n.strip("."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
OPTIONS: list[dict[str, Any]] = [
    {}, {"chunks": True}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True},
    {"chunks": True, "fletcher32": True}, {"compression": "gzip", "fletcher32": True, "shuffle": True},
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    arrays=st.dictionaries(
        PATHS,
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=9))
        ),
        max_size=8,
    ),
    texts=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=5),
        st.one_of(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
                  st.lists(st.text("abcé", min_size=1, max_size=9), max_size=5)), max_size=4,
    ),
    order=st.booleans(),
)  # fmt: skip
def test_what_the_library_writes_is_read(
    data: st.DataObject,
    arrays: dict[str, np.ndarray[Any, Any]],
    texts: dict[str, str | list[str]],
    order: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("hdf5") / "x.h5"
    taken: set[str] = set()
    with h5py.File(path, "w", track_order=order and len(arrays) < 5) as file:
        for name, values in arrays.items():
            parents = {name.rsplit("/", n)[0] for n in range(1, 3)} - {name}
            if name in file or any(isinstance(file.get(p), h5py.Dataset) for p in parents):
                continue
            options = data.draw(st.sampled_from(OPTIONS)) if values.ndim and values.size else {}
            file.create_dataset(name, data=values, **options)
            taken.add(name)
        for name, value in texts.items():
            file.attrs[name] = value
    found = Hdf5(path, "x.h5", path.stat().st_size)
    try:
        assert set(found.datasets) == taken
        for name in taken:
            values = arrays[name]
            listed = found.datasets[name]
            assert (listed.shape, listed.dtype) == (
                values.shape,
                values.dtype.newbyteorder("=").name,
            )
            read = found.read(name)
            np.testing.assert_array_equal(read, values)
            assert read.dtype == values.dtype.newbyteorder("=")
            if values.ndim:
                part = tuple(slice(data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))
                             for n in values.shape)  # fmt: skip
                np.testing.assert_array_equal(found.read(name, part), values[part])
        for name, value in texts.items():
            whole = found.texts("", name) if isinstance(value, list) else found.text("", name, 1000)
            assert whole == value
        with h5py.File(path) as file:
            groups: list[str] = [""]
            file.visititems(lambda n, o: groups.append(n) if isinstance(o, h5py.Group) else None)
            assert {n: list(file[f"/{n}"]) for n in groups} == {
                n: list(g.children) for n, g in found.groups.items()
            } or order
    finally:
        found.close()


@pytest.mark.parametrize("layout", ["compact", "unfinished", "old", "resized"])
def test_layouts_that_h5py_seldom_writes(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    values = np.arange(60, dtype=np.float32).reshape(6, 10)
    with h5py.File(path, "w", libver=("v108" if layout == "old" else "earliest", "latest")) as file:
        if layout == "compact":
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(values.shape)
            h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, space, dcpl=plan)
            file["w"][...] = values
        elif layout == "unfinished":  # chunks that were never written hold the fill value
            made = file.create_dataset(
                "w", (6, 10), "f4", chunks=(2, 3), fillvalue=7.5, compression="gzip"
            )
            made[1:3, 2:5] = values[1:3, 2:5]
            values = made[...]
        elif layout == "resized":
            made = file.create_dataset("w", data=values, chunks=(4, 4), maxshape=(None, None))
            made.resize((5, 7))
            values = made[...]
        else:
            file["w"] = values
    found = Hdf5(path, "x.h5", path.stat().st_size)
    np.testing.assert_array_equal(found.read("w"), values)
    np.testing.assert_array_equal(found.read("w", (slice(1, 4), slice(2, 5))), values[1:4, 2:5])
    found.close()


def test_a_filter_that_is_not_read_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([b"l"])
        layer = file.create_group("l")
        layer.attrs["weight_names"] = np.array([b"w"])
        layer.create_dataset("w", data=np.arange(1000.0), chunks=(1000,), compression="lzf")
    with checkpoints.open(path) as found:
        assert found["l/w"].shape == (1000,)
        with pytest.raises(FormatError, match="lzf"):
            found.read("l/w")


@pytest.mark.parametrize(
    "file", sorted(p.relative_to(REAL).as_posix() for p in REAL.rglob("*.h*5")) or ["none"]
)
def test_real_files_as_the_library_reads_them(file: str) -> None:
    if file == "none":
        pytest.skip("no real checkpoints here")
    found = Hdf5(REAL / file, file, (REAL / file).stat().st_size)
    names: list[str] = []
    with h5py.File(REAL / file, locking=False) as raw:
        raw.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
        assert sorted(found.datasets) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(found.read(name), raw[name][()])
        for group in found.groups:
            for attribute, value in raw[f"/{group}"].attrs.items():
                if isinstance(value, str):
                    assert found.text(group, attribute, 1 << 24) == value
                elif getattr(value, "dtype", np.dtype("f4")).kind == "S":
                    assert found.texts(group, attribute) == [v.decode() for v in value]
    found.close()
