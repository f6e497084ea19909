"""Scores `rg.verify` on planted differences: `python -m benchmarks.divergences [words]`.

A line for each case, and in the end: how many were located, how many causes proven, how many wrong
ones claimed as proven, how many equal pairs called equal, and how many runs it took.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
import warnings
from collections import Counter
from typing import Any

import torch

import regraft as rg
from benchmarks.divergences.gathering import gathered


def score(case: Any) -> tuple[str, Counter[str]]:
    source, target, inputs = case.make()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.known == "live":
            report = rg.verify(target, inputs, source=source)
        else:
            with tempfile.TemporaryDirectory() as folder:
                held = f"{folder}/source.pth" if case.known == "file" else None
                if held:
                    torch.save(source.state_dict(), held)
                report = rg.verify(target, rg.record(source, inputs), source=held)
    took = time.perf_counter() - began
    proven = {cause.kind for cause in report.causes if cause.proven}
    count: Counter[str] = Counter()
    if not case.kinds:
        count |= Counter({"equal": 1, "called equal": int(report.equal)})
        good = report.equal
    else:
        located = not report.equal and report.first_divergence in case.where
        wrong = proven - set(case.kinds)
        named = len(proven & set(case.kinds))
        count["planted"], count["causes"] = 1, len(case.kinds)
        count["located"], count["proven"], count["wrong"] = located, named, len(wrong)
        count["passes"] = report.passes
        good = located and named == len(case.kinds) and not wrong
    told = "; ".join(map(str, report.causes)) or "-"
    line = f"{'ok  ' if good else 'FAIL'} {case.name:38} {took:5.2f}s {report.passes:3} "
    return f"{line} {report.first_divergence!r}: {told}"[:260], count


def main(words: list[str]) -> None:
    total: Counter[str] = Counter()
    for case in gathered():
        wanted = [word for word in words if not word.startswith("-")]
        if wanted and not any(word in case.name for word in wanted):
            continue
        try:
            line, count = score(case)
        except Exception as error:
            line, count = f"FAIL {case.name}: {type(error).__name__}: {error}"[:400], Counter()
            count["planted" if case.kinds else "equal"] = 1
            count["causes"] = len(case.kinds)
            if "--raise" in words:
                raise
        if not ("-q" in words and line.startswith("ok")):
            print(line, flush=True)
        total += count
        gc.collect()
    planted, causes, equal = total["planted"], total["causes"], total["equal"]
    print(f"located {total['located']} of {planted}; causes proven {total['proven']} of {causes}; "
          f"wrong ones claimed {total['wrong']}; equal pairs called equal "
          f"{total['called equal']} of {equal}; runs of the target in all "
          f"{total['passes']} ({total['passes'] / max(planted, 1):.1f} a case)")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
