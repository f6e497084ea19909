"""What an attack is, and what is asked of the reader for every one of them.

An attack makes a hostile file in a folder of its own. Its payload is inert: all that it could do is
to make the marker in that folder. The reader, in a child process, must refuse it with a typed
error that says where, or, where the payload harms nobody, list it rightly; in bounded time and
memory, and without anything new in the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from regraft.errors import CorruptFile, FormatError, UnsafeFile

SECONDS = 10
MEMORY = 256 << 20
# Wall clock, on a machine that others use too, after which a child counts as hanging.
PATIENCE = 60

# Name → shape, for hostile-looking files that may be opened.
Listing = Mapping[str, tuple[int, ...]]
Make = Callable[[Path, Path], Path]
REFUSED = (UnsafeFile, CorruptFile)


class Attack(NamedTuple):
    """`make(folder, marker)` gives the path to open.

    - `expects`: the error, or one of several, or the right listing; `None` where the file means
      nothing in particular, so that it may be opened or refused, but must not cost.
    - `where`: what the error's `where` must match.
    - `stage`: whether opening or only reading is to fail.
    """

    make: Make
    expects: type[FormatError] | tuple[type[FormatError], ...] | Listing | None = REFUSED
    where: str = ""
    stage: str = "open"


def written(name: str, content: bytes | Callable[[Path], bytes]) -> Make:
    """An attack of one file, whose content may depend on the marker's path."""

    def make(folder: Path, marker: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content(marker))
        return path

    return make


class Child:
    """A process that opens files; started anew when a file kills it or makes it hang."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, path: Path) -> dict[str, Any]:
        process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, which its silence tells
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._patience)
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if not ready:
            process.kill()
        status = process.wait()
        self.close()
        return {"kind": "crash" if ready else "hang", "text": f"status {status}", "stage": "open"}

    def _started(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "child.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            if process.poll() is None:
                process.terminate()
                process.wait()


def outcomes(attacks: Mapping[str, Attack], root: Path) -> dict[str, dict[str, Any]]:
    """All of a container's attacks, through one child."""
    child = Child()
    found: dict[str, dict[str, Any]] = {}
    try:
        for number, (name, attack) in enumerate(attacks.items()):
            folder = root / str(number)
            folder.mkdir()
            marker = folder / "marker"
            path = attack.make(folder, marker)
            before = _contents(folder)
            result = child.outcome(path)
            result["size"] = sum(s for _, s in before)
            result["changed"] = sorted(map(str, {*_contents(folder)} ^ {*before}))
            result["marker"] = marker.exists()
            found[name] = result
    finally:
        child.close()
    return found


def _contents(folder: Path) -> list[tuple[str, int]]:
    return [(str(p), p.lstat().st_size) for p in folder.rglob("*") if not p.is_dir()]


def check(attack: Attack, outcome: dict[str, Any]) -> None:
    """Everything that is asked of the reader."""
    assert outcome["kind"] in ("refused", "opened"), outcome
    assert not outcome["marker"], "the payload ran"
    assert not outcome["changed"], outcome["changed"]
    assert outcome["seconds"] < SECONDS, outcome["seconds"]
    assert outcome["peak"] < outcome["size"] + MEMORY, f"{outcome['peak'] >> 20} MiB"
    if attack.expects is None and outcome["kind"] == "opened":
        return
    if isinstance(attack.expects, Mapping):
        assert outcome["kind"] == "opened", outcome["text"]
        listed = {name: tuple(shape) for name, (shape, _) in outcome["tensors"].items()}
        assert listed == dict(attack.expects)
        return
    assert outcome["kind"] == "refused", f"opened as {str(outcome['tensors'])[:500]}"
    assert outcome["stage"] == attack.stage, outcome
    expected = attack.expects or REFUSED
    kinds = expected if isinstance(expected, tuple) else (expected,)
    assert {kind.__name__ for kind in kinds} & {*outcome["errors"]}, outcome["text"]
    assert re.search(attack.where, outcome["where"]), outcome["text"]
    assert len(outcome["text"]) < 5000
    unprintable = [c for c in outcome["text"] if not c.isprintable() and c != "\n"]
    assert not unprintable, f"{unprintable[:5]} in a message"
