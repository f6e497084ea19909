"""The HTML page: whole in one file, safe with any name, never overwriting."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import regraft as rg
from regraft.reports import Table
from regraft.tuning import Epoch, Policy, Tuned
from regraft.tuning.receipts import TuningReceipt


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [v or "" for k, v in attrs if k in ("src", "href")]


def test_everything_on_one_page(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "<b>base.pth")
    model = nn.Linear(3, 2)
    receipt = rg.load(tmp_path / "<b>base.pth", model)
    with torch.no_grad():
        model.weight.add_(1)
    rg.save(model, tmp_path / "t.pth", receipt=receipt)
    curve = tuple(Epoch(i, 1 / i, 2 / i, 0.5) for i in (1, 2, 3))
    page = rg.report(
        tmp_path / "x.html",
        title="<script>alert(1)</script>",
        receipt=receipt,
        tuned=Tuned(model, curve, 3, {}, {"epochs": "3"}, TuningReceipt(Policy(), 3, {})),
        diff=rg.diff(tmp_path / "<b>base.pth", tmp_path / "t.pth"),
        lineage=rg.trace(tmp_path / "t.pth"),
        tables=[Table("Results", ("a", "b"), [("1", "2")])],
    )
    text = page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.outside == []
    assert reader.tags.count("table") >= 5
    assert "<script>alert(1)" not in text
    assert "<b>base" not in text
    for word in ("What changed", "Lineage", "Fine-tuning", "Results", "every tensor"):
        assert word in text
    with pytest.raises(rg.FormatError, match="exists"):
        rg.report(page)


def test_a_page_without_charts_is_small(tmp_path: Path) -> None:
    page = rg.report(tmp_path / "x.html", plan=rg.plan(nn.Linear(3, 2), nn.Linear(3, 2)))
    assert page.stat().st_size < 20_000
