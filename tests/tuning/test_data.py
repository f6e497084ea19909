"""Data from tables, text and saved datasets, as arrays that a model takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regraft as rg
from regraft.tuning.data import load

CSV = (
    "text,width,height,label\na cat,1,0.5,cat\na dog,2,1.5,dog\nthe dog,3,2.5,dog\ncat,4,3.5,cat\n"
)


def read(path: Path, **how: Any) -> rg.Data:
    return load(path, channels_first=True, reading=rg.Reading(**how))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_numbers_in_csv_and_parquet(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", CSV)
    found = read(path, columns=("width", "height"))
    np.testing.assert_array_equal(
        found.x, np.array([[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]], np.float32)
    )
    assert found.y.tolist() == [0, 1, 1, 0]
    assert found.classes == ("cat", "dog")
    numbers = read(path, columns=("width",), answer="height")
    assert not numbers.classification
    whole = read(path, columns=("height",), answer="width")
    assert whole.classification
    assert read(path, columns=("height",), answer="width", regression=True).y.dtype == np.float32
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {
        "width": [1, 2, 3, 4],
        "height": [0.5, 1.5, 2.5, 3.5],
        "label": ["cat", "dog", "dog", "cat"],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    again = read(tmp_path / "a.parquet")
    np.testing.assert_array_equal(again.x, found.x)
    np.testing.assert_array_equal(again.y, found.y)


def test_answers_that_are_neither_classes_nor_numbers() -> None:
    x = np.zeros((4, 2), np.float32)
    found = rg.Data(x, np.array([True, False, True, False]))
    assert found.classification
    assert found.y.tolist() == [1, 0, 1, 0]
    for wrong in (np.eye(4, dtype=np.int64), np.array(list("abcd")), np.eye(4) > 0):
        with pytest.raises(rg.FormatError, match="answers"):
            rg.Data(x, wrong)


def test_text_that_looks_like_a_number_stays_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "code,label\n007,1\n1e3,01\nnan,x\na,1\n")
    seen: list[str] = []
    found = read(path, rows=lambda row: [seen.append(row["code"]) or 0])
    assert seen == ["007", "1e3", "nan", "a"]
    assert found.classes == ("01", "1", "x")
    assert found.y.tolist() == [1, 0, 2, 1]


def tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "a", "the", "cat", "dog"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(str(folder))
    return folder


def test_text_by_a_tokenizer(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", CSV)
    folder = str(tokenizer(tmp_path / "tokenizer"))
    found = read(path, columns=("text",), tokenizer=folder)
    assert isinstance(found.x, dict)
    assert found.x["input_ids"].tolist() == [[2, 4], [2, 5], [3, 5], [4, 0]]
    assert found.x["attention_mask"].tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]]
    short = read(path, columns=("text",), tokenizer=folder, length=1)
    assert isinstance(short.x, dict)
    assert short.x["input_ids"].shape == (4, 1)
    split = found.split(0.5, 0)
    assert isinstance(split.x, dict)
    assert len(split.x["input_ids"]) == len(split.y) == 2
    for how in (
        {"columns": ("text",)},
        {"tokenizer": folder},
        {"columns": ("text",), "tokenizer": "no"},
    ):
        with pytest.raises(rg.FormatError):
            read(path, **how)


def test_text_in_training(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            weights = attention_mask[..., None].float()
            return self.head((self.embed(input_ids) * weights).sum(1))

    torch.manual_seed(0)
    path = written(tmp_path / "a.csv", CSV)
    how = rg.Reading(columns=("text",), tokenizer=str(tokenizer(tmp_path / "t")))
    tuned = rg.finetune(Words(), path, reading=how, validation=0, epochs=20, lr=0.1)
    assert tuned.curve[-1].loss < 0.1 < tuned.curve[0].loss


def test_rows_by_a_function(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", CSV)
    module = written(tmp_path / "rows.py", "def row(r):\n    return [len(r['text']), r['width']]\n")
    assert read(path, rows=f"{module}:row").x.tolist() == [[5, 1], [5, 2], [7, 3], [3, 4]]  # pyright: ignore
    several = read(path, rows=lambda row: {"a": [row["width"]], "b": row["height"]})
    assert isinstance(several.x, dict)
    assert several.x["a"].shape == (4, 1)
    with pytest.raises(rg.FormatError):
        read(path, rows=lambda row: [0] * row["width"])
    with pytest.raises(rg.TargetError):
        read(path, rows=f"{module}:nothing")


@pytest.mark.filterwarnings("ignore:.*")
def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    labels = datasets.ClassLabel(names=["cat", "dog"])
    pictures = [Image.new("RGB", (4, 3), (i * 50, 0, 0)) for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    rows = {"image": pictures, "label": [0, 1, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "one"))
    found = read(tmp_path / "one")
    assert isinstance(found.x, np.ndarray)
    assert found.x.shape == (4, 3, 3, 4)
    assert found.classes == ("cat", "dog")
    assert found.x[1, 0].max() == pytest.approx(50 / 255)
    train = datasets.Dataset.from_dict({"v": [[0.5, 1.0], [2.0, 3.0]], "label": [0, 1]})
    held = datasets.Dataset.from_dict({"v": [[7.0, 8.0]], "label": [1]})
    datasets.DatasetDict({"train": train, "test": held}).save_to_disk(str(tmp_path / "two"))
    found = read(tmp_path / "two")
    assert isinstance(found.x_val, np.ndarray)
    assert found.x_val.tolist() == [[7.0, 8.0]]
    (tmp_path / "bad").mkdir()
    written(tmp_path / "bad" / "state.json", "{}")
    with pytest.raises(rg.FormatError):
        read(tmp_path / "bad")


def test_tables_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"uneven": "a,label\n1,2,3\n", "empty": "", "twice": "a,a\n1,2\n", "gap": "a,label\n,1\n",
             "negative": "a,label\n1,-1\n", "lacks": "a,b\n1,2\n"}  # fmt: skip
    for name, text in texts.items():
        with pytest.raises(rg.FormatError):
            read(written(tmp_path / f"{name}.csv", text))
    (tmp_path / "binary.csv").write_bytes(b"a,label\n\xff\xfe,1\n")
    written(tmp_path / "no.parquet", "no parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for name, error in (("binary.csv", rg.FormatError), ("no.parquet", rg.MissingDependency)):
        with pytest.raises(error):
            read(tmp_path / name)
