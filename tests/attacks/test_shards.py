"""Indices that reach outside their folder, and paths that are no files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attacks.building import FLOATS, archive, entry, safetensors, save, torch_parts
from attacks.harness import Attack, Child, Make, check
from regraft import checkpoints
from regraft.errors import CorruptFile, FormatError, MissingShard, UnsafeFile

SHARD = safetensors({"w": entry([4], 0, 16)}, FLOATS)
OTHER = safetensors({"v": entry([4], 0, 16)}, FLOATS)


def index(content: object, name: str = "m.safetensors.index.json") -> Make:
    """An index beside two honest shards, `a` with `w` and `b` with `v`, and a file outside."""

    def make(folder: Path, marker: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        (inner / "a.safetensors").write_bytes(SHARD)
        (inner / "b.safetensors").write_bytes(OTHER)
        (folder / "outside.safetensors").write_bytes(SHARD)
        encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
        return save(inner / name, encoded)

    return make


def mapped(shard: Any, tensor: str = "w") -> Make:
    return index({"weight_map": {tensor: shard}})


def special(prepare: Callable[[Path], Any], shard: str = "s.safetensors") -> Make:
    """An index whose shard is made by `prepare`, which is given its path."""

    def make(folder: Path, marker: Path) -> Path:
        path = mapped(shard)(folder, marker)
        prepare(path.parent / shard)
        return path

    return make


def alone(prepare: Callable[[Path], Any], name: str = "x.pth") -> Make:
    def make(folder: Path, marker: Path) -> Path:
        prepare(folder / name)
        return folder / name

    return make


def hub(how: Callable[[Path], Any], name: str, weights: str = "model.safetensors") -> Make:
    """A folder as of a model hub, of which one file is made by `how`."""

    def make(folder: Path, marker: Path) -> Path:
        (folder / "d").mkdir()
        (folder / "d" / weights).write_bytes(SHARD)
        how(folder / "d" / name)
        return folder / "d"

    return make


def _in_two(folder: Path, marker: Path) -> Path:
    path = index({"weight_map": {"w": "a.safetensors", "u": "s.safetensors"}})(folder, marker)
    both = {"w": entry([2], 0, 8), "u": entry([2], 8, 16)}
    (path.parent / "s.safetensors").write_bytes(safetensors(both, FLOATS))
    return path


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\x93NUMPY")
        file.truncate(1 << 40)


def _absolute(folder: Path, marker: Path) -> Path:
    return mapped(str(folder / "outside.safetensors"))(folder, marker)


def _linked_index(folder: Path, marker: Path) -> Path:
    """The index is a link; its shards lie beside the link, not beside the index."""
    path = mapped("s.safetensors")(folder, marker)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / path.name).symlink_to(path)
    (folder / "elsewhere" / "s.safetensors").symlink_to(folder / "outside.safetensors")
    return folder / "elsewhere" / path.name


INDEX = "index.json"
ATTACKS = {
    "a shard above the folder": Attack(mapped("../outside.safetensors"), UnsafeFile, INDEX),
    "a shard above the folder, by detours": Attack(
        mapped("x/../../outside.safetensors"), UnsafeFile, INDEX),
    "a shard that comes back": Attack(mapped("../inner/a.safetensors"), UnsafeFile, INDEX),
    "a shard by an absolute path": Attack(_absolute, UnsafeFile, INDEX),
    "a shard among the system's files": Attack(mapped("/etc/passwd"), UnsafeFile, INDEX),
    "a shard behind a backslash": Attack(mapped("..\\outside.safetensors"), UnsafeFile, INDEX),
    "a shard on another drive": Attack(mapped("C:\\a.safetensors"), UnsafeFile, INDEX),
    "a shard of another host": Attack(
        mapped("https://example.org/a.safetensors"), FormatError, INDEX),
    "a shard in the home folder": Attack(mapped("~/a.safetensors"), FormatError, INDEX),
    "a shard by a variable": Attack(mapped("$HOME/a.safetensors"), FormatError, INDEX),
    "a shard by a pattern": Attack(mapped("*.safetensors"), FormatError, INDEX),
    "a shard that links outside": Attack(
        special(lambda p: p.symlink_to("../outside.safetensors")), UnsafeFile, INDEX),
    "a shard that links outside by an absolute path": Attack(
        special(lambda p: p.symlink_to("/etc/passwd")), UnsafeFile, INDEX),
    "a shard that links to a link outside": Attack(
        special(lambda p: (p.with_name("t").symlink_to("../outside.safetensors"),
                           p.symlink_to("t"))), UnsafeFile, INDEX),
    "a shard that links to itself": Attack(
        special(lambda p: p.symlink_to(p.name)), FormatError, INDEX),
    "a shard that links in a circle": Attack(
        special(lambda p: (p.with_name("t").symlink_to(p.name), p.symlink_to("t"))), FormatError,
        INDEX),
    "a shard that links to nothing": Attack(
        special(lambda p: p.symlink_to("nothing")), MissingShard, INDEX),
    "a shard in a folder that links outside": Attack(
        special(lambda p: p.parent.symlink_to(".."), "d/outside.safetensors"), UnsafeFile, INDEX),
    "an index that links, with shards beside the link": Attack(_linked_index, UnsafeFile, INDEX),
    "a shard that is a folder": Attack(special(lambda p: p.mkdir()), MissingShard, INDEX),
    "a shard that is the folder": Attack(mapped("."), FormatError, INDEX),
    "a shard that is a pipe": Attack(special(lambda p: os.mkfifo(p)), MissingShard, INDEX),
    "a shard that links to a device": Attack(
        special(lambda p: p.symlink_to("/dev/zero")), UnsafeFile, INDEX),
    "a shard that is missing": Attack(mapped("c.safetensors"), MissingShard, INDEX),
    "a shard that is the index": Attack(
        mapped("m.safetensors.index.json"), FormatError, INDEX),
    "a shard that is another index": Attack(special(
        lambda p: p.write_text('{"weight_map": {"w": "a.safetensors"}}'), "n.index.json"),
        FormatError, INDEX),
    "a shard that is empty": Attack(special(lambda p: p.write_bytes(b"")), FormatError, ""),
    "a shard with an empty name": Attack(mapped(""), FormatError, INDEX),
    "a shard with a zero in its name": Attack(mapped("a\0.safetensors"), FormatError, INDEX),
    "a shard with a name of control characters": Attack(
        mapped("\x1b[2J\x07.safetensors"), MissingShard, INDEX),
    "a shard with a name that is too long": Attack(mapped("n" * 5000), FormatError, INDEX),
    "a shard with a path that is too long": Attack(mapped("n/" * 50_000), FormatError, INDEX),
    "a shard with half a character in its name": Attack(
        index(b'{"weight_map": {"w": "\\ud800"}}'), FormatError, INDEX),
    "twenty thousand shards that are missing": Attack(
        index({"weight_map": {f"w{i}": f"s{i}" for i in range(20_000)}}), MissingShard, INDEX),
    "a tensor in two shards": Attack(_in_two, CorruptFile, INDEX),
    "a tensor that is in the other shard": Attack(
        index({"weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}), CorruptFile, INDEX),
    "a tensor that is in no shard": Attack(
        index({"weight_map": {"w": "a.safetensors", "u": "a.safetensors"}}), CorruptFile, INDEX),
    "a tensor that no index names": Attack(
        special(lambda p: p.write_bytes(safetensors(
            {"w": entry([2], 0, 8), "u": entry([2], 8, 16)}, FLOATS))), {"w": (2,), "u": (2,)}),
    "a tensor named twice": Attack(
        index(b'{"weight_map": {"w": "b.safetensors", "w": "a.safetensors"}}'), CorruptFile, INDEX),
    "a map that is given twice": Attack(index(
        b'{"weight_map": {"v": "b.safetensors"}, "weight_map": {"w": "a.safetensors"}}'),
        CorruptFile, INDEX),
    "a map that is a list": Attack(index({"weight_map": ["a.safetensors"]}), CorruptFile, INDEX),
    "a map that is a number": Attack(index({"weight_map": 3}), CorruptFile, INDEX),
    "a map that is empty": Attack(index({"weight_map": {}}), CorruptFile, INDEX),
    "no map": Attack(index({"metadata": {}}), CorruptFile, INDEX),
    "a shard that is a number": Attack(mapped(3), CorruptFile, INDEX),
    "a shard that is a list": Attack(mapped(["a.safetensors"]), CorruptFile, INDEX),
    "an index that is a list": Attack(index([]), CorruptFile, INDEX),
    "an index that is empty": Attack(index(b""), CorruptFile, INDEX),
    "an index that is no JSON": Attack(index(b"{"), CorruptFile, INDEX),
    "an index that is nested deep": Attack(index(b"[" * 500_000), CorruptFile, INDEX),
    "an index that is nested deep in what is not needed": Attack(
        index(b'{"x":' + b'[' * 400_000 + b']' * 400_000 + b"}"), CorruptFile, INDEX),
    "an index of many small lists": Attack(
        index(b'{"x":[' + b"[]," * 7_000_000 + b"[]]}"), CorruptFile, INDEX),
    "an index that is a folder": Attack(
        alone(lambda p: p.mkdir(), "m.safetensors.index.json"), FormatError, ""),
    "an index that is a pipe": Attack(
        alone(lambda p: os.mkfifo(p), "m.safetensors.index.json"), FormatError, ""),
    "a file that is a pipe": Attack(alone(lambda p: os.mkfifo(p)), FormatError, "x.pth"),
    "a file that links to a device": Attack(
        alone(lambda p: p.symlink_to("/dev/zero")), FormatError, "x.pth"),
    "a file that links to a device of chance": Attack(
        alone(lambda p: p.symlink_to("/dev/urandom"), "x.safetensors"), FormatError, "x.saf"),
    "a file that links to itself": Attack(
        alone(lambda p: p.symlink_to(p.name)), FormatError, "x.pth"),
    "a file that links to nothing": Attack(
        alone(lambda p: p.symlink_to("nothing")), FormatError, "x.pth"),
    "a file that is a socket": Attack(alone(lambda p: _socket(p)), FormatError, "x.pth"),
    "a file that is a folder": Attack(alone(lambda p: p.mkdir()), FormatError, "x.pth"),
    "a file that may not be read by its owner": Attack(
        alone(lambda p: (p.write_bytes(b""), p.chmod(0))), FormatError, "x.pth"),
    "an empty file": Attack(alone(lambda p: p.write_bytes(b"")), FormatError, "x.pth"),
    "a terabyte of nothing": Attack(alone(_sparse, "x.npy"), FormatError, "x.npy"),
    "a config that is a pipe": Attack(hub(lambda p: os.mkfifo(p), "config.json"), {"w": (4,)}),
    "a config that links to a device": Attack(
        hub(lambda p: p.symlink_to("/dev/zero"), "config.json"), {"w": (4,)}),
    "an adapter's config that is a pipe": Attack(
        hub(lambda p: os.mkfifo(p), "adapter_config.json", "adapter_model.safetensors"),
        UnsafeFile, "adapter_config"),
    "an adapter's config that is a folder": Attack(
        hub(lambda p: p.mkdir(), "adapter_config.json", "adapter_model.safetensors"),
        FormatError, "adapter_config"),
    "an index of a hub that is a pipe": Attack(
        hub(lambda p: os.mkfifo(p), "model.safetensors.index.json", "x.txt"), FormatError, ""),
    "a folder of a pipe": Attack(
        alone(lambda p: (p.mkdir(), os.mkfifo(p / "a.safetensors")), "d"), FormatError, ""),
    "a folder of a folder": Attack(
        alone(lambda p: (p / "a.safetensors").mkdir(parents=True), "d"), FormatError, ""),
    "a folder of a circle": Attack(
        alone(lambda p: (p.mkdir(), (p / "a.bin").symlink_to("a.bin")), "d"), FormatError, ""),
    "a file whose name has control characters": Attack(
        alone(lambda p: p.write_bytes(b"nothing known"), "\x1b]0;owned\x07\n.pth"), FormatError, ""),
    "a file whose name is no text": Attack(
        alone(lambda p: p.write_bytes(b"nothing known"), "\udcff\udc80.pth"), FormatError, ""),
    "a torch file whose name has control characters": Attack(
        alone(lambda p: p.write_bytes(archive(torch_parts(b""))), "\x1b[31m\r.pth"), CorruptFile,
        ""),
    "a file that does not exist": Attack(lambda f, m: f / "absent.pth", FormatError, "absent"),
    "a path with a zero": Attack(lambda f, m: f / "a\0.pth", FormatError, ""),
    "a path that is too long": Attack(lambda f, m: f / ("n" * 5000), FormatError, ""),
    "a path below a file": Attack(
        lambda f, m: save(f / "x", b"") / "y.pth", FormatError, ""),
}  # fmt: skip


def _socket(path: Path) -> None:
    import socket

    # Its path may be longer than a socket's name may be.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def test_shards_and_paths(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".npy", ".npz"])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_file_that_shrinks_after_it_was_opened(
    ending: str, read_before: bool, tmp_path: Path
) -> None:
    """Touching a mapped page that is gone would kill the process: it runs in a child's place."""
    import subprocess
    import sys

    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from regraft import checkpoints\n"
        "from regraft.errors import CorruptFile\n"
        "from regraft.tensors import TensorInfo\n"
        "path = Path(sys.argv[1])\n"
        "values = np.arange(1 << 16, dtype=np.float32)\n"
        "if path.suffix == '.npy':\n"
        "    np.save(path, values)\n"
        "else:\n"
        "    info = TensorInfo('w', values.shape, 'float32')\n"
        "    checkpoints.write(path, [(info, lambda: values), (info._replace(name='v'), lambda: values)])\n"
        "found = checkpoints.open(path)\n"
        "name = next(iter(found))\n"
        "if sys.argv[2] == 'True': found.read(name)\n"
        "with path.open('r+b') as file: file.truncate(100)\n"
        "try: print(float(found.read(name).sum()))\n"
        "except CorruptFile as error: print('refused', error.where)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / f"x{ending}"), str(read_before)],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert run.stdout.startswith("refused x"), (run.returncode, run.stdout, run.stderr)


def test_the_child_says_when_a_file_kills_or_hangs_it(tmp_path: Path) -> None:
    """The harness itself: a pipe that is opened blocks, and the child is started anew."""
    child = Child(patience=3)
    try:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "x.npy").write_bytes(b"")
        process = child._started()  # pyright: ignore[reportPrivateUsage]
        os.kill(process.pid, 19)  # stopped: it answers nothing
        assert child.outcome(tmp_path / "x.npy")["kind"] == "hang"
        assert child.outcome(tmp_path / "x.npy")["kind"] == "refused"
        os.kill(child._process.pid, 9)  # pyright: ignore[reportOptionalMemberAccess, reportPrivateUsage]
        assert child.outcome(tmp_path / "x.npy")["kind"] == "crash"
    finally:
        child.close()


def test_an_unreadable_file_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything: the refusal of the system is put in by hand."""
    path = save(tmp_path / "x.pth", archive(torch_parts()))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FormatError, match="Permission denied"):
        checkpoints.open(path)
