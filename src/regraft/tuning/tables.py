"""Tables as training data: CSV, Parquet, and what the datasets library saved to disk."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from regraft.errors import FormatError, MissingDependency
from regraft.tuning import images
from regraft.tuning.data import Data, Reading

if TYPE_CHECKING:
    from regraft.tensors import Array
    from regraft.tuning.data import Inputs

SUFFIXES = (".csv", ".tsv", ".parquet")
_HELD_OUT = ("validation", "valid", "val", "dev", "test")
# Columns by name; each a list of one value a row.
Table: TypeAlias = "Mapping[str, Sequence[Any]]"


def table_data(path: Path, how: Reading, channels_first: bool) -> Data:
    """Data from a `.csv`, `.tsv` (UTF-8, with a row of names) or `.parquet`. **Raises**
    `FormatError`, `MissingDependency` (Parquet needs pyarrow)."""
    table = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    return _data(table, how, channels_first, str(path), ())


def saved(path: Path) -> bool:
    """Whether a folder was saved by the datasets library."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_data(path: Path, how: Reading, channels_first: bool) -> Data:
    """Data from `Dataset.save_to_disk` or `DatasetDict.save_to_disk`. **Raises** `FormatError`,
    `MissingDependency`."""
    datasets = _library("datasets", "data saved by it")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            str(path), found=f"{type(error).__name__}: {error}"[:300], expected="a saved dataset"
        ) from error
    splits: dict[str, Any] = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise FormatError(str(path), found=f"splits {', '.join(splits)}", expected="a split train")
    train = splits["train"]
    held = next((splits[name] for name in _HELD_OUT if name in splits), None)
    names: tuple[str, ...] = tuple(getattr(train.features.get(how.answer), "names", None) or ())
    data = _data(train[:], how, channels_first, str(path), names)
    if held is None:
        return data
    other = _data(held[:], how, channels_first, str(path), names or data.classes)
    return Data(data.x, data.y, other.x, other.y, data.classes)


def _csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(str(path), found=str(error), expected="a table in UTF-8") from error
    names, rows = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    uneven = next((i for i, row in enumerate(rows, 2) if len(row) != len(names)), None)
    if uneven or len(set(names)) != len(names) or not rows:
        raise FormatError(
            str(path),
            found=f"line {uneven} of another length" if uneven else f"columns {names}, no rows",
            expected="a row of distinct names, and rows of as many values",
        )
    return {name: _column([row[i] for row in rows]) for i, name in enumerate(names)}


def _column(texts: list[str]) -> list[Any]:
    """Numbers where all of a column are; otherwise the texts as they are. Empty: `None`."""
    for kind in (int, float):
        try:
            return [kind(text) if text else None for text in texts]
        except ValueError:
            continue
    return [text or None for text in texts]


def _parquet(path: Path) -> Table:
    parquet = _library("pyarrow.parquet", "Parquet files")
    try:
        return parquet.read_table(str(path)).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise FormatError(str(path), found=str(error)[:300], expected="a Parquet file") from error


def _library(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name.split(".")[0], extra="data", purpose=purpose) from error


def _data(
    table: Table, how: Reading, channels_first: bool, where: str, classes: tuple[str, ...]
) -> Data:
    said = (how.answer, *how.columns)
    missing = [name for name in said if name not in table]
    if missing:
        raise FormatError(
            where,
            found=f"columns {', '.join(table)}",
            expected=f"a column {missing[0]!r}",
            hint="name the column of answers (--answer) and those of inputs (--column)",
        )
    wanted = how.columns or tuple(name for name in table if name != how.answer)
    inputs = {name: table[name] for name in wanted}
    gaps = [n for n, column in (inputs | {how.answer: table[how.answer]}).items() if None in column]
    if gaps:
        row = list(table[gaps[0]]).index(None) + 1
        raise FormatError(
            where,
            found=f"no value in column {gaps[0]!r}, row {row}",
            expected="a value in every row",
            hint="leave such rows out, or fill them in",
        )
    y, classes = _answers(table[how.answer], how, classes, where)
    return Data(_inputs(inputs, how, channels_first, where), y, classes=classes)


def _answers(
    column: Sequence[Any], how: Reading, classes: tuple[str, ...], where: str
) -> tuple[Array, tuple[str, ...]]:
    """Class numbers and the classes' names, or numbers."""
    if all(isinstance(value, (bool, int, np.integer)) for value in column) and not how.regression:
        numbers = np.asarray(column, np.int64)
        if numbers.min() < 0:
            raise FormatError(
                where,
                found=f"class number {numbers.min()} in column {how.answer!r}",
                expected="numbers from 0, or regression (--regression)",
            )
        return numbers, classes
    if all(isinstance(value, (int, float)) for value in column):
        return np.asarray(column, np.float32), ()
    texts = [str(value) for value in column]
    names = classes or tuple(sorted(set(texts)))
    unknown = sorted(set(texts) - set(names))
    if unknown or how.regression:
        raise FormatError(
            where,
            found=f"the answer {unknown[0] if unknown else texts[0]!r}",
            expected="a number" if how.regression else f"one of {', '.join(names)}",
        )
    return np.array([names.index(text) for text in texts], np.int64), names


def _inputs(inputs: Table, how: Reading, channels_first: bool, where: str) -> Inputs:
    """What the model is given: by the caller's function, a tokenizer, or as the columns are."""
    names = list(inputs)
    if how.rows:
        values = zip(*inputs.values(), strict=True)
        return _by_rows([dict(zip(names, row, strict=True)) for row in values], how.rows, where)
    texts = [name for name, column in inputs.items() if any(isinstance(v, str) for v in column)]
    if texts:
        if not how.tokenizer or len(names) > 1:
            raise FormatError(
                where,
                found=f"text in column {texts[0]!r}, among {', '.join(names)}",
                expected="numbers, or one column of text and a tokenizer",
                hint="--column and --tokenizer FOLDER, or --rows module:callable",
            )
        return _tokens([str(v) for v in inputs[texts[0]]], how, where)
    if hasattr(inputs[names[0]][0], "convert"):  # an image, as the datasets library opens it
        pictures = ((f"{where}, row {i}", v) for i, v in enumerate(inputs[names[0]], 1))
        return images.stacked(pictures, channels_first, how.size, how.gray, where)
    try:
        arrays: dict[str, Any] = {name: np.asarray(column) for name, column in inputs.items()}
    except ValueError as error:
        raise FormatError(where, found=str(error), expected="rows of one length") from error
    odd = [name for name, array in arrays.items() if array.dtype.kind not in "biuf"]
    if odd:
        raise FormatError(where, found=f"column {odd[0]!r}", expected="numbers in every row")
    if all(array.ndim == 1 for array in arrays.values()):
        return np.stack([array.astype(np.float32) for array in arrays.values()], 1)
    arrays = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _tokens(texts: list[str], how: Reading, where: str) -> Inputs:
    transformers = _library("transformers", "tokenizers")
    if not Path(how.tokenizer).is_dir():
        raise FormatError(
            how.tokenizer, found="no such folder", expected="a tokenizer that transformers saved"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            how.tokenizer, local_files_only=True, trust_remote_code=False
        )
        made = tokenizer(
            texts, padding=True, truncation=how.length > 0, max_length=how.length or None,
            return_tensors="np",
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"{where}, by the tokenizer in {how.tokenizer}", found=str(error)[:300]
        ) from error
    return {name: np.asarray(made[name]) for name in ("input_ids", "attention_mask")}


def _by_rows(rows: list[dict[str, Any]], given: Any, where: str) -> Inputs:
    from regraft.targets import callables

    function = callables.named(given) if isinstance(given, str) else given
    made = [function(row) for row in rows]
    try:
        if isinstance(made[0], Mapping):
            return {name: np.stack([np.asarray(row[name]) for row in made]) for name in made[0]}
        return np.stack([np.asarray(row) for row in made])
    except (KeyError, ValueError) as error:
        raise FormatError(
            f"{where}, by {given}",
            found=f"{type(error).__name__}: {error}",
            expected="arrays of one shape, or dicts of such with the same keys, for every row",
        ) from error
