"""Which format a file is of, and which one writes it: the built-in ones and entry points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import formats
from regraft.errors import CorruptFile, FormatError, UnknownFormat
from regraft.formats import Format, Refill, Sample, Write

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def sample_of(path: Path) -> Sample:
    """What formats may look at. **Raises** `FormatError` where there is nothing to look at."""
    try:
        there = path.is_file() or path.is_dir()
    except OSError as error:  # a name or a path that is too long
        raise FormatError(str(path)[:300], found=f"{error.strerror}") from error
    if not there:
        raise FormatError(
            str(path),
            found="no such file" if not path.exists() else "neither a file nor a folder",
            hint="check the path",
        )
    try:
        return Sample(path)
    except OSError as error:
        raise FormatError(str(path), found=f"{error.strerror}") from error


def claiming(sample: Sample) -> Format | None:
    """The one format that claims a file or a folder."""
    if not sample.head and not sample.entries:
        return None
    for name in _likely_first(sample.path.name):
        found = formats.load(name)
        if found.sniff(sample):
            return found
    for entry in _entry_points():
        found = entry.load()
        if found.sniff(sample):
            return found
    return None


def format_of(path: Path) -> Format:
    """The one format that claims a file. **Raises** `UnknownFormat`, `FormatError`."""
    sample = sample_of(path)
    found = claiming(sample)
    if found is not None:
        return found
    if sample.unfinished_zip:
        raise CorruptFile(
            str(path),
            found="the beginning of a zip archive without the directory at its end",
            expected="a whole archive, as PyTorch, Keras and NumPy write",
            hint="the file is cut off or damaged; get it again",
        )
    known = [*formats.names(), *sorted(entry.name for entry in _entry_points())]
    told = next((told for begin, told in _NO_CHECKPOINTS.items() if _begins(sample, begin)), None)
    found, hint = told or (
        f"a file that begins with {sample.head[:8]!r}",
        "a format can be added through the entry point regraft.formats",
    )
    raise UnknownFormat(str(path), found=found, expected=f"one of {', '.join(known)}", hint=hint)


# What lies in a checkpoint's place when getting it went wrong.
_NO_CHECKPOINTS = {
    b"": ("an empty file", "it was not written, or not downloaded, to its end: get it again"),
    b"version https://git-lfs": ("the pointer to a file in Git LFS", "get the file: git lfs pull"),
    b"<!doctype html": ("a web page", "the download gave a page of the site: get the file itself"),
    b"<html": ("a web page", "the download gave a page of the site: get the file itself"),
}


def _begins(sample: Sample, begin: bytes) -> bool:
    head = sample.head.lstrip().lower()
    return head.startswith(begin) if begin else not sample.head


# Formats to try first for a file name's ending, so that listing a .pth imports neither numpy nor
# h5py. The rest follow, since a name may lie.
_LIKELY = {
    ".safetensors": ("safetensors",),
    ".npz": ("npz",),
    ".npy": ("npy",),
    ".onnx": ("onnx",),
    ".index": ("tensorflow",),
    ".pb": ("tensorflow_graph", "tensorflow_saved_model"),
    ".gguf": ("gguf",),
    ".msgpack": ("flax_msgpack",),
    ".keras": ("keras_zip",),
    ".weights.h5": ("keras_weights_h5", "keras_h5"),
    ".h5": ("keras_h5", "keras_weights_h5"),
    ".hdf5": ("keras_h5", "keras_weights_h5"),
}
_CHEAP = ("torch_zip", "torch_legacy", "safetensors")


def _likely_first(name: str) -> list[str]:
    first = next((found for ending, found in _LIKELY.items() if name.endswith(ending)), ())
    known = formats.names()
    return [n for n in dict.fromkeys((*first, *_CHEAP, *known)) if n in known]


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group="regraft.formats"))


def refiller_of(path: Path, name: str) -> Refill | None:
    """The `refill` of the format of this name, where it answers to the path's ending and no writer
    does."""
    if _writers_for(path, _writers()):
        return None
    found: Any = None
    if name in formats.names():
        found = formats.load(name)
    else:
        found = next((entry.load() for entry in _entry_points() if entry.name == name), None)
    endings: tuple[str, ...] = getattr(found, "REFILLS", ())
    return found.refill if path.name.lower().endswith(endings or ("\0",)) else None


def writer_of(path: Path, wanted: str | None) -> Write:
    """The `write` of a format by name, or of the one with the longest matching ending."""
    writers = _writers()
    if wanted is not None:
        if wanted in writers:
            return writers[wanted][1]
        raise UnknownFormat(
            str(path),
            found=f"the format {wanted!r}",
            expected=f"one that can be written: {', '.join(writers)}",
        )
    fitting = _writers_for(path, writers)
    if fitting:
        return max(fitting, key=lambda item: item[0])[1]
    endings = sorted(suffix for suffixes, _ in writers.values() for suffix in suffixes)
    near = [ending for ending in endings if path.suffix and ending.endswith(path.suffix.lower())]
    raise UnknownFormat(
        str(path),
        found=f"the ending {path.suffix!r}" if path.suffix else "no ending, which names a format",
        expected=f"one that can be written: {', '.join(endings)}",
        hint=f"write {path.stem}{near[0]}" if near else "change the ending, or name a format",
    )


def _writers() -> dict[str, tuple[tuple[str, ...], Write]]:
    """Endings and `write` of each format that has one, by its name."""
    writers: dict[str, tuple[tuple[str, ...], Write]] = {}
    entries = {entry.name: entry for entry in _entry_points()}
    for name in dict.fromkeys((*formats.names(), *entries)):
        found: Any = formats.load(name) if name in formats.names() else entries[name].load()
        writer: Write | None = getattr(found, "write", None)
        if writer is not None:
            writers[name] = (tuple(found.SUFFIXES), writer)
    return writers


def _writers_for(
    path: Path, writers: Mapping[str, tuple[tuple[str, ...], Write]]
) -> list[tuple[int, Write]]:
    """Writers that answer to a path's ending, with the ending's length."""
    return [
        (len(suffix), writer)
        for suffixes, writer in writers.values()
        for suffix in suffixes
        if path.name.lower().endswith(suffix)
    ]
