"""`diff`, `trace`, `restore`, `export`, `delta` and `lineage` as commands, on what people give them
by mistake, and on tensors of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import regraft as rg
from regraft.cli import cli
from regraft.errors import RegraftError


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Of every kind, and of no size."""
    torch.manual_seed(seed)
    return {
        "f32": torch.randn(8, 6),
        "f64": torch.randn(3, 3, dtype=torch.float64),
        "bf16": torch.randn(5, 7).bfloat16(),
        "f8": torch.randn(5, 7).to(torch.float8_e4m3fn),
        "c64": torch.randn(4, 4, dtype=torch.complex64),
        "i64": torch.randint(-(2**40), 2**40, (10,)),
        "u8": torch.randint(0, 255, (40,), dtype=torch.uint8),
        "bool": torch.rand(12) > 0.5,
        "none": torch.zeros(0, 4),
        "scalar": torch.randn(()),
        "odd": torch.tensor([1.0, float("nan"), float("inf"), 2.0]),
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(tensors(0), "base.pth")
    torch.save(tensors(1), "tuned.pth")
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    """The status, and what was printed or raised."""
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    if isinstance(done.exception, RegraftError):
        return done.exception.exit_code, f"{type(done.exception).__name__}: {done.exception}"
    assert done.exception is None, done.exception
    return done.return_value or 0, done.output


def test_tensors_of_every_kind(here: Path) -> None:
    assert run("diff", "base.pth", "base.pth") == (0, "base.pth → base.pth: 11 identical\n")
    status, told = run("diff", "base.pth", "tuned.pth")
    assert (status, told.count("moved  ")) == (1, 9)  # all but the empty one and the odd one
    assert "1 moved" not in told
    state = tensors(0)
    state["odd"] = torch.tensor([float("nan"), 4.0, float("inf"), 2.0])
    torch.save(state, "odd.pth")
    assert "3 of NaN or Inf left out" in run("diff", "base.pth", "odd.pth")[1]
    for tuned in ("tuned.pth", "base.pth"):
        assert run("delta", "make", "base.pth", tuned, "-o", "d", "--force")[0] == 0
        assert run("delta", "apply", "base.pth", "d", "-o", "back.pth", "--force")[0] == 0
        assert Path("back.pth").read_bytes() == Path(tuned).read_bytes()
    words = ("restore", "tuned.pth", "--base", "base.pth", "--tensors", "*", "-o", "r.safetensors")
    assert run(*words)[0] == 1  # values of another start are no proof of anything
    assert run(*words, "--accept", "*") == (0, "11 tensors rewound, written to r.safetensors\n")
    assert run("diff", "base.pth", "r.safetensors")[0] == 0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("zero.pth", b"", "an empty file"), ("page.pth", b"\n<!DOCTYPE HTML><html>", "a web page"),
     ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
     ("junk.pth", b"hello", "begins with b'hello'"), ("folder", None, "a folder without weights"),
     ("absent.pth", None, "no such file")],
)  # fmt: skip
def test_what_is_no_checkpoint(name: str, text: bytes | None, told: str, here: Path) -> None:
    if text is not None:
        (here / name).write_bytes(text)
    elif name == "folder":
        (here / name).mkdir()
    for words in (
        ("diff", name, "base.pth"), ("diff", "base.pth", name), ("trace", name),
        ("export", name, "-o", "x.pth"), ("delta", "make", name, "base.pth", "-o", "x.pth"),
        ("delta", "make", "base.pth", name, "-o", "x.pth"),
        ("delta", "apply", "base.pth", name, "-o", "x.pth"),
        ("restore", name, "--base", "base.pth", "--tensors", "*", "-o", "x.pth"),
        ("restore", "base.pth", "--base", name, "--tensors", "*", "-o", "x.pth"),
    ):  # fmt: skip
        status, found = run(*words)
        assert status == 3, words
        assert told in found
    assert not Path("x.pth").exists()


def test_fresh_and_gone_with_their_shapes(here: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3, 8)}, "a.pth")
    torch.save({"fc.weight": torch.zeros(5, 8), "n": torch.zeros(2).half()}, "b.pth")
    _, told = run("diff", "a.pth", "b.pth")
    rows = [" ".join(row.split()) for row in told.splitlines()[1:]]
    assert rows == ["fresh fc.weight float32[5, 8]", "fresh n float16[2]",
                    "gone fc.weight (a.pth) float32[3, 8]"]  # fmt: skip


def test_parts_of_files(here: Path) -> None:
    one, other = {"w": torch.ones(4)}, {"w": torch.zeros(4)}
    torch.save({"model": one, "ema": other}, "c.pth")
    torch.save(one, "p.pth")
    parts = ("--container", "model", "--tuned-container", "ema")
    assert run("diff", "p.pth", "c.pth", "--tuned-container", "model")[0] == 0
    assert run("diff", "p.pth", "c.pth", "--tuned-container", "ema")[0] == 1
    assert run("diff", "c.pth", "c.pth", *parts)[0] == 1


def test_tied_tensors(here: Path) -> None:
    weight = torch.randn(12, 8)
    torch.save({"emb": weight, "head": weight}, "tied.pth")
    moved = weight + 0.01
    torch.save({"emb": moved, "head": moved}, "moved.pth")
    torch.save({"emb": moved, "head": moved * 2}, "apart.pth")
    assert "not any more" not in run("diff", "tied.pth", "moved.pth")[1]
    assert "emb and head were one tensor, and are not any more" in run(
        "diff", "tied.pth", "apart.pth"
    )[1]  # fmt: skip
    words = ("restore", "moved.pth", "--base", "tied.pth", "-o", "r.pth", "--tensors")
    status, told = run(*words, "emb")
    assert (status, "one tensor with 'head'" in told) == (1, True)
    assert run(*words, "emb", "--tensors", "head")[0] == 0


def test_shards_and_one_file(here: Path) -> None:
    draw = np.random.default_rng(0)
    state = {f"l{i}.w": draw.normal(size=(32, 32)).astype("f4") for i in range(6)}
    Path("sharded").mkdir()
    index = rg.convert(state, "sharded/model.safetensors", max_shard=10_000)
    rg.convert(state, "whole.npz")
    state["l2.w"] += 1
    rg.convert(state, "moved.safetensors")
    for given in ("sharded", str(index)):
        assert run("diff", given, "whole.npz")[0] == run("diff", "whole.npz", given)[0] == 0
        assert "5 identical, 1 moved" in run("diff", given, "moved.safetensors")[1]
    assert run("delta", "make", "sharded", "moved.safetensors", "-o", "d")[0] == 0
    assert run("delta", "apply", "whole.npz", "d", "-o", "back")[0] == 0
    assert Path("back").read_bytes() == Path("moved.safetensors").read_bytes()
    assert (
        "a delta for each of its files"
        in run("delta", "make", "whole.npz", "sharded", "-o", "e")[1]
    )
    assert (
        run("restore", "moved.safetensors", "--base", "sharded", "--tensors", "l2*", "-o", "r.npz")[
            0
        ]
        == 0
    )
    assert run("diff", "whole.npz", "r.npz")[0] == 0


def test_nothing_is_written_over_what_is_needed(here: Path) -> None:
    assert run("delta", "make", "base.pth", "tuned.pth", "-o", "d")[0] == 0
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    wide = ("--tensors", "*", "--accept", "*")
    for words in (
        ("delta", "make", "base.pth", "tuned.pth", "-o", "base.pth"),
        ("delta", "make", "base.pth", "tuned.pth", "-o", "./tuned.pth"),
        ("delta", "apply", "base.pth", "d", "-o", "base.pth"),
        ("delta", "apply", "base.pth", "d", "-o", "d"),
        ("restore", "tuned.pth", "--base", "base.pth", *wide, "-o", "base.pth"),
    ):
        assert run(*words)[0] == 3
        status, told = run(*words, "--force")
        assert status == 3, words
        assert "would be lost" in told
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
    # The file itself may be written anew.
    words = ("restore", "tuned.pth", "--base", "base.pth", *wide, "-o", "tuned.pth", "--force")
    assert run(*words)[0] == 0
    assert run("diff", "base.pth", "tuned.pth")[0] == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that nobody can write to")
def test_folders_that_cannot_be_written_to(here: Path) -> None:
    for words in (
        ("delta", "make", "base.pth", "tuned.pth", "-o", "/proc/x.delta"),
        ("restore", "base.pth", "--base", "base.pth", "--tensors", "*", "-o", "/proc/x.pth"),
        ("diff", "base.pth", "tuned.pth", "--html", "/proc/x.html"),
    ):
        status, told = run(*words)
        assert status == 3
        assert "FormatError: /proc/x." in told
        assert "can be written to" in told
    assert (
        "no such folder"
        in run("restore", "base.pth", "--base", "base.pth", "--tensors", "*", "-o", "no/x.pth")[1]
    )


def test_what_else_goes_wrong(here: Path) -> None:
    assert (
        "regraft delta apply BASE DELTA"
        in run("delta", "apply", "tuned.pth", "base.pth", "-o", "x")[1]
    )
    assert "regraft diff BASE base.pth" in run("trace", "base.pth")[1]
    assert (
        "write x.weights.h5"
        in run("restore", "base.pth", "--base", "base.pth", "--tensors", "f32", "-o", "x.h5")[1]
    )
    (here / "folder").mkdir()
    assert "no checkpoints in folder" in run("lineage", "folder")[1]
    assert run("lineage", "base.pth")[0] == 3


def test_a_file_that_was_changed_since_is_told_by_its_status(here: Path) -> None:
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    torch.save(twin.state_dict(), "b.pth")
    receipt = rg.load("b.pth", model)
    torch.save(model.state_dict(), "t.pth")
    receipt.keep_beside("t.pth")
    assert run("trace", "t.pth")[0] == 0
    path = rg.save(model, "t.safetensors", receipt=receipt)
    assert run("trace", str(path))[0] == 0
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    status, told = run("trace", str(path))
    assert (status, "changed" in told) == (1, True)
