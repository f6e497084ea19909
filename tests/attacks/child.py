"""Opens files one after another in a process of its own and says what each of them cost.

Reads paths from stdin, one JSON string a line; answers each with one JSON object a line. A parent
that hears nothing knows that the file made the process hang, or ended it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from regraft import checkpoints, formats
from regraft.errors import RegraftError

# Far more than any file may cost: so much that the machine is spared, and no more.
_GUARD = 3 << 30
_READ_AT_MOST = 64 << 20


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def _listed(path: Path) -> dict[str, Any]:
    """Opens, and where that succeeds reads every tensor; `stage` is how far it came."""
    started = time.process_time()
    outcome: dict[str, Any] = {"stage": "open", "kind": "opened"}
    try:
        with checkpoints.open(path) as found:
            outcome["seconds"] = time.process_time() - started
            outcome["peak"] = _resident("VmHWM")
            outcome["tensors"] = {
                n: [list(i.shape), i.dtype] for n, i in list(found.items())[:2000]
            }
            outcome["stage"] = "read"
            digests = outcome["digests"] = {}
            for name, info in found.items():
                if info.nbytes <= _READ_AT_MOST and time.process_time() - started < 20:
                    array = found.read(name)
                    assert array.shape == info.shape, name
                    digests[name] = hashlib.sha256(array.tobytes()).hexdigest()
    except RegraftError as error:
        outcome |= {"kind": "refused", "where": error.where, "text": str(error)}
        outcome["errors"] = [kind.__name__ for kind in type(error).__mro__]
    except BaseException:
        outcome |= {"kind": "raised", "text": traceback.format_exc(limit=-6)[-3000:]}
    outcome.setdefault("seconds", time.process_time() - started)
    outcome.setdefault("peak", _resident("VmHWM"))
    return outcome


def main() -> None:
    warnings.simplefilter("error")
    for name in formats.names():
        formats.load(name)
    for library in ("numpy", "h5py", "json"):
        __import__(library)
    trim = ctypes.CDLL(None).malloc_trim
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        gc.collect()
        trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (_resident("VmSize") + _GUARD, hard))
        outcome = _listed(Path(json.loads(line)))
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        outcome["peak"] = max(0, outcome["peak"] - before)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
