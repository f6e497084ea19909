"""What is in a file, as rows of text and as plain values. Needs neither numpy nor a table library:
it must be there at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from regraft.reports.facts import WRAPPERS
from regraft.tensors import TensorInfo

if TYPE_CHECKING:
    from regraft.checkpoints import Checkpoint
    from regraft.reports.facts import Facts
    from regraft.reports.folding import Fold
    from regraft.reports.oddities import Oddity
    from regraft.reports.outline import Row
    from regraft.reports.recognition import Look
    from regraft.reports.statistics import Statistics

Cells = tuple[str, ...]

_SHOWN = 3
_METADATA_SHOWN, _METADATA_LENGTH = 6, 40


# Words


def size_text(count: int) -> str:
    """Bytes in binary units, three digits: `1.03 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 999.5 or unit == "TiB":
            return (
                f"{count} B"
                if unit == "B"
                else f"{size:.{2 - (size >= 9.995) - (size >= 99.95)}f} {unit}"
            )
        size /= 1024
    raise AssertionError


def shape_text(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def printable(text: str) -> str:
    """Text of a file without what a terminal would obey, or could not print: `\\x1b`, `\\ud800`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _counted(count: int) -> str:
    return f"{count:,} tensor" + "s" * (count != 1)


def _dtypes(dtypes: Sequence[str]) -> str:
    more = f" +{len(dtypes) - 2}" if len(dtypes) > 2 else ""
    return ", ".join(dtypes[:2]) + more


# The file as a whole


def headline(found: Checkpoint, facts: Facts) -> str:
    """One line about the whole file."""
    told = [found.format]
    if found.framework and found.framework not in found.format:
        told.append(found.framework)
    if found.container:
        told.append(f"in {found.container!r}")
    told += [_counted(len(found)), f"{facts.values:,} values", size_text(facts.nbytes)]
    if facts.dtypes:
        told.append(_dtypes(tuple(facts.dtypes)))
    return f"{printable(found.label)}  {printable(' · '.join(told))}"


def remarks(found: Checkpoint, facts: Facts) -> Iterator[tuple[str, str]]:
    """Further facts, each with the word that it goes under."""
    for look in facts.looks[:_SHOWN]:
        yield ("says it is" if look.said else "looks like"), printable(_look(look))
    if facts.prefix:
        known = " ".join(f"{p}: {WRAPPERS[p]}." for p in facts.prefix.split(".") if p)
        yield "all names", f"begin with {facts.prefix}  ({known.removesuffix('.')})"
    if facts.others:
        listed = _few(f"{part} ({_counted(count)})" for part, count in facts.others.items())
        yield "also there", printable(f"{listed}; --container NAME opens it")
    if facts.again:
        pairs = _few(f"{name} = {first}" for name, first in facts.again.items())
        yield "tied", printable(f"{pairs}; counted once")
    if facts.lineage:
        yield "lineage", "regraft trace tells where each tensor came from"
    told = {key for look in facts.looks for key in look.by}
    short = {
        key: value
        for key, value in found.metadata.items()
        if key not in told and 0 < len(value) <= _METADATA_LENGTH
    }
    if short:
        pairs = _few((f"{key}={value}" for key, value in short.items()), _METADATA_SHOWN)
        yield "metadata", printable(pairs)


def _few(texts: Iterable[str], shown: int = _SHOWN) -> str:
    """The first of them, and how many more there are."""
    listed = list(texts)
    more = [f"… {len(listed) - shown:,} more"] if len(listed) > shown else []
    return ", ".join([*listed[:shown], *more])


def _look(look: Look) -> str:
    details = f": {look.details}" if look.details else ""
    under = f", under {look.under}" if look.under else ""
    return f"{look.name}{under}{details}  ({'' if look.said else 'by '}{', '.join(look.by)})"


# Rows


def of_outline(row: Row, again: Mapping[str, str], whole_names: bool) -> Cells:
    """Name, shape or number of tensors, bytes, dtype and contents of a fold.

    `whole_names`: with all of the name, so that a line tells by itself what it is about.
    """
    fold = row.fold
    tensor = fold.tensor
    name = f"{row.path}{fold.label}"
    shown = name if whole_names or not row.depth else fold.label.lstrip("./") or "(itself)"
    what = shape_text(tensor.shape) if tensor and fold.times == 1 else _counted(fold.tensors)
    size = size_text(fold.nbytes)
    if tensor is None:
        shown += f"{_separator(row)}*"
        inside = _module(row)
    else:
        inside = tensor.module
        if fold.times > 1:
            inside = f"each {shape_text(tensor.shape)}  {inside}".rstrip()
        if tensor.name in again:
            size = "tied"
            inside = f"= {again[tensor.name]}" if fold.times == 1 else inside
    return (
        printable("  " * row.depth + shown),
        what,
        size,
        _dtypes(sorted(fold.dtypes)),
        printable(inside),
    )


def _separator(row: Row) -> str:
    first = next((fold.label[:1] for fold in row.inner if fold.label), ".")
    return first if first in "./" else "."


def _module(row: Row) -> str:
    """The class of a module, and what is inside of it unless that is shown below."""
    classes = {fold.tensor.module for fold in row.inner if fold.tensor}
    found = classes.pop() if len(classes) == 1 else ""
    if row.opened:
        return found
    parts: list[str] = []
    for shape, folds in groupby(row.inner, key=_shape):
        rest = "" if shape is not None else ".*"
        names = ", ".join((fold.label.lstrip("./") or "(itself)") + rest for fold in folds)
        parts.append(f"{names} {shape_text(shape)}" if shape is not None else names)
    return f"{found}: {' · '.join(parts)}" if found else " · ".join(parts)


def _shape(fold: Fold) -> tuple[int, ...] | None:
    return fold.tensor.shape if fold.tensor else None


def of_tensor(info: TensorInfo, again: Mapping[str, str]) -> Cells:
    """Name, shape, bytes, dtype and layer of a single tensor."""
    note = f"= {again[info.name]}" if info.name in again else info.module
    size = size_text(info.nbytes)
    return printable(info.name), shape_text(info.shape), size, info.dtype, printable(note)


STATISTICS: Cells = ("", "shape", "dtype", "min", "max", "mean", "std", "zeros", "NaN", "Inf")


def of_values(info: TensorInfo, found: Statistics) -> Cells:
    """A row below the heads in `STATISTICS`."""
    share = f"{found.zeros / found.size:.2%}" if found.zeros else "0"
    if 0 < found.zeros < found.size and share in ("0.00%", "100.00%"):
        share = f"{found.zeros:,}"
    numbers = (found.min, found.max, found.mean, found.std)
    odd = (f"{count:,}" if count else "0" for count in (found.nan, found.inf))
    shown = ("" if number is None else f"{number:.4g}" for number in numbers)
    return printable(info.name), shape_text(info.shape), info.dtype, *shown, share, *odd


# No column is padded to more than this, however long a cell is.
_WIDEST = 160
# How columns give way where there is little room: which, and down to what width, in turn.
_NOTES_FIRST = ((-1, 8), (0, 24), (-1, 0), (0, 12), (3, 7))
NAMES_FIRST = ((0, 24), (1, 0), (2, 0), (0, 12))


def table(
    rows: Iterable[Cells],
    right: Iterable[int],
    width: int | None = None,
    shrink: Iterable[tuple[int, int]] = _NOTES_FIRST,
) -> Iterator[Cells]:
    """Rows with their cells padded to columns, two blanks before each; columns in `right` are
    aligned to the right. Where there is a `width`, columns give way as `shrink` says."""
    listed = list(rows)
    if not listed:
        return
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    if width is None:
        widths = [min(_WIDEST, size) for size in widths]
    else:
        for column, least in shrink:
            over = sum(widths) + 2 * sum(map(bool, widths)) - width
            if over > 0:
                widths[column] = min(widths[column], max(least, widths[column] - over))
    aligned: list[Callable[[str, int], str]] = [str.ljust] * len(widths)
    for column in right:
        aligned[column] = str.rjust
    for row in listed:
        yield tuple(
            "  " + align(cell if width is None else _cut(cell, size, column > 0), size)
            if size
            else ""
            for column, (align, cell, size) in enumerate(zip(aligned, row, widths, strict=True))
        )


def _cut(cell: str, width: int, head: bool) -> str:
    """A cell cut to a width; at its end, or where the end tells most, in the middle."""
    if len(cell) <= width:
        return cell
    indent = len(cell) - len(cell.lstrip(" "))
    kept = width - 1 if head else min(width - 1, indent + max(0, width - 1 - indent) // 3)
    return f"{cell[:kept]}…{cell[len(cell) - (width - 1 - kept) :]}"


# Plain values


def as_json(
    found: Checkpoint,
    facts: Facts,
    infos: Iterable[TensorInfo],
    oddities: Iterable[Oddity],
    measured: Mapping[str, Statistics] | None = None,
) -> dict[str, Any]:
    """The listing as plain values; `tensors` holds name, shape, dtype and nbytes of each."""
    return {
        "schema_version": 1,
        "path": str(found.path),
        "format": found.format,
        "framework": found.framework,
        "container": found.container,
        "containers": found.containers,
        "nbytes": facts.nbytes,
        "values": facts.values,
        "dtypes": {d: {"tensors": n, "nbytes": b} for d, (n, b) in facts.dtypes.items()},
        "prefix": facts.prefix,
        "looks_like": [
            {
                "name": look.name,
                "said": look.said,
                "by": list(look.by),
                "under": look.under,
                "blocks": list(look.blocks),
                "sizes": dict(look.sizes),
            }
            for look in facts.looks
        ],
        "notes": list(found.notes),
        "warnings": [
            {"code": odd.code, "text": odd.text, "tensors": list(odd.tensors)} for odd in oddities
        ],
        "metadata": dict(found.metadata),
        "ties": [list(group) for group in found.ties],
        "tensors": [
            {
                "name": info.name,
                "shape": list(info.shape),
                "dtype": info.dtype,
                "nbytes": info.nbytes,
                "module": info.module,
                "kind": info.kind,
                **({"statistics": measured[info.name].to_json()} if measured else {}),
            }
            for info in infos
        ],
    }
