"""TensorFlow checkpoints: `X.index` with `X.data-00000-of-00001`, of TensorFlow 1 and 2.

Given as the index, or as a folder that holds one checkpoint, or several and the file `checkpoint`,
in which TensorFlow notes the latest. (The prefix `X` stands for `X.index`.) Version 1, a single
table without data files, is refused by name.
"""

from __future__ import annotations

import re
from pathlib import Path

from regraft.errors import FormatError, MissingShard
from regraft.formats import Sample
from regraft.formats._beside import regular
from regraft.formats._bundle_listing import BundleStored
from regraft.formats._sstable import FOOTER, MAGIC
from regraft.formats._tensor_bundle import INDEX
from regraft.tensors import Stored

EXTRA = ""
SUFFIXES: tuple[str, ...] = ()

_STATE = "checkpoint"
_MAX_STATE = 1 << 20
_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_LATEST = re.compile(rb'^model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)


def sniff(sample: Sample) -> bool:
    if sample.entries:
        return bool(_prefixes(sample.entries)) and "saved_model.pb" not in sample.entries
    if not sample.head:
        return False
    with sample.path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - FOOTER))
        if file.read().endswith(MAGIC):
            return True
    if not sample.path.name.endswith(INDEX):
        return False
    # An index that is cut off is known by the files beside it.
    names = tuple(file.name for file in sample.path.parent.glob("*.data-00000-of-*"))
    return sample.path.name.removesuffix(INDEX) in _prefixes((*names, sample.path.name))


def open(path: Path) -> Stored:
    """Lists the tensors. **Raises** `CorruptFile`, `MissingShard`, `UnsafeFile`, `FormatError`."""
    index = regular(path / _STATE, _index_in(path)) if path.is_dir() else path
    return BundleStored("tensorflow", index, {})


def _prefixes(entries: tuple[str, ...]) -> list[str]:
    """Prefixes of the checkpoints among the names of a folder."""
    with_data = {found[1] for name in entries if (found := _DATA.fullmatch(name))}
    return [p for p in sorted(with_data) if f"{p}{INDEX}" in entries]


def _index_in(folder: Path) -> str:
    """Name of the one index, or the latest by the note that TensorFlow keeps."""
    prefixes = _prefixes(Sample(folder).entries)
    state = folder / _STATE
    if len(prefixes) > 1 and state.is_file() and state.stat().st_size <= _MAX_STATE:
        noted = _LATEST.search(state.read_bytes())
        # Only the last part counts: the files may have been moved since.
        name = re.split(r"[\\/]", noted[1].decode("utf-8", "replace"))[-1] if noted else ""
        if name and name not in prefixes:
            raise MissingShard(
                str(folder),
                found=f"no {name}{INDEX}, which the file {_STATE} calls the latest",
                expected=f"one of {', '.join(prefixes)}",
                hint="get the missing files, or name one of the others",
            )
        if name:
            return f"{name}{INDEX}"
    if len(prefixes) != 1:
        raise FormatError(
            str(folder),
            found=f"{len(prefixes)} checkpoints: {', '.join(prefixes[:20])}",
            expected=f"one, or the file {_STATE} that names the latest",
            hint="name one of them by its prefix",
        )
    return f"{prefixes[0]}{INDEX}"
