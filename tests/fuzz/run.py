"""Fuzzes one format's reader for a while, guided by coverage: `python -m tests.fuzz.run --help`.

Findings (anything but values or a typed error, too much memory, more than ten seconds) are shrunk
and put into `corpus/<format>/`, where `test_fuzz.py` reads them from then on.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

_SECONDS, _MEMORY, _MORE_MB, _MAX_SIZE = 10, 256 << 20, 1024, 1 << 18


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", required=True, help="a format's name, or `all`")
    parser.add_argument(
        "--seconds", type=int, default=60, help="of processor time, for each format"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        _fuzz(asked.format, asked.seed, asked.seconds, Path(asked.worker))
        return 0
    from regraft import formats

    names = formats.names() if asked.format == "all" else [asked.format]
    return max(_supervise(name, asked.seconds, asked.seed) for name in names)


def _supervise(name: str, seconds: int, seed: int) -> int:
    """Starts workers until the time is up: one that hangs or dies is a finding, too."""
    from fuzz.samples import attacks, of_format, small

    executions, found = 0, 0
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("samples", "corpus", "found", "attacks"):
            (root / part).mkdir()
        samples = small(of_format(name, root / "samples"))
        seeds = [bytes([index]) + sample.data for index, sample in enumerate(samples)]
        if samples[0].folder is None:
            suffix = "".join(Path(samples[0].name).suffixes)
            seeds += [bytes(1) + data for data in attacks(suffix, root / "attacks")]
        for index, data in enumerate(seeds):
            (root / "corpus" / f"seed{index}").write_bytes(data)
        begun = _processor()
        while (left := seconds - (_processor() - begun)) > 1:
            command = [sys.executable, "-m", "tests.fuzz.run", "--format", name, "--seconds",
                       str(int(left) + 1), "--seed", str(seed), "--worker", str(root)]  # fmt: skip
            with (root / "log").open("w+") as log:
                status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
                log.seek(0)
                output = log.read()
            done = re.findall(r"^#(\d+)", output, re.MULTILINE)
            executions += int(done[-1]) if done else 0
            seed += 1
            if status and (not done or not list((root / "found").iterdir())):
                print(output[-3000:])
            for artifact in sorted((root / "found").iterdir()):
                found += 1
                _keep(name, artifact, root / "samples")
                artifact.unlink()
    print(f"{name}: {executions} executions in {seconds} s, {found} found", flush=True)
    return int(found > 0)


def _processor() -> float:
    """Seconds of processor time of all workers so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _fuzz(name: str, seed: int, seconds: int, root: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["regraft"]):
        from regraft import checkpoints, formats  # noqa: F401

        formats.load(name)
    from fuzz.mutations import mutated
    from fuzz.samples import made_in, open_and_read, place, small, written

    seen: set[str] = set()
    samples = small(made_in(root / "samples"))
    with TemporaryDirectory(dir=place()) as folder:

        def once(data: bytes) -> None:
            if not data:
                return
            sample = samples[data[0] % len(samples)]
            try:
                started = time.process_time()
                with written(sample, data[1:], Path(folder)) as path:
                    open_and_read(path)
                assert time.process_time() - started < _SECONDS, "too slow"
            except Exception as error:
                signature = _signature(error)
                if signature not in seen:  # each fault once, and on
                    seen.add(signature)
                    (root / "found" / f"{len(seen)}-{abs(hash(signature))}").write_bytes(data)
                    traceback.print_exc()

        def change(data: bytes, limit: int, seed: int) -> bytes:
            random = Random(seed)
            if not data or random.random() < 0.3:
                return atheris.Mutate(data, limit)
            return (data[:1] + mutated(name, data[1:], random))[:limit]

        # The makers of samples have loaded frameworks, which take gigabytes by themselves.
        limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + _MORE_MB
        options = [
            f"-seed={seed}", f"-max_total_time={seconds}", f"-max_len={_MAX_SIZE}",
            f"-timeout={2 * _SECONDS}", f"-rss_limit_mb={limit}", "-print_final_stats=1",
            f"-artifact_prefix={root}/found/", str(root / "corpus"),
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], once, custom_mutator=change)
        atheris.Fuzz()


def _signature(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} {[(f.filename, f.lineno) for f in frames]}"


def _keep(name: str, artifact: Path, made: Path) -> None:
    """Puts a finding into the corpus, as small as it still is one."""
    from attacks.harness import Child
    from fuzz.samples import CORPUS, made_in, small, written

    with TemporaryDirectory() as folder:
        samples = small(made_in(made))
        data = artifact.read_bytes()
        sample = samples[(data[0] if data else 0) % len(samples)]
        child = Child(patience=2 * _SECONDS)

        def kind(content: bytes) -> str:
            with written(sample, content, Path(folder)) as path:
                outcome = child.outcome(path)
            last = outcome.get("text", "").strip().splitlines()[-1:] or [""]
            bad = outcome["kind"] in ("raised", "crash", "hang")
            bad = bad or outcome["seconds"] > _SECONDS or outcome["peak"] > _MEMORY
            return f"{outcome['kind']} {last[0][:60]}" if bad else ""

        content = data[1:]
        fault = kind(content)
        if fault and sample.folder is None:
            content = _shrunk(content, lambda c: kind(c) == fault)
        child.close()
        print(f"{name}, {artifact.name}: {fault or 'not found again'}, {len(content)} bytes")
        if fault:
            kept = CORPUS / name / f"{artifact.name[-12:]}{''.join(Path(sample.name).suffixes)}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            with written(sample, content, Path(folder)) as path:
                shutil.move(path, kept)


def _shrunk(data: bytes, still, seconds: int = 60) -> bytes:
    """Leaves out pieces, larger ones first, as long as the fault stays."""
    started, size = time.monotonic(), len(data) // 2
    while size >= 8:
        at = 0
        while at < len(data) and time.monotonic() - started < seconds:
            less = data[:at] + data[at + size :]
            if still(less):
                data = less
            else:
                at += size
        size //= 2
    return data


if __name__ == "__main__":
    os.nice(10)
    sys.exit(main())
