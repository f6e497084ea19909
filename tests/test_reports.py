"""The HTML page: whole in one file, safe with any name, never overwriting."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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


def drawn(page: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """By the heading that stands before it, what each chart draws, and how."""
    found: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
    for section in re.split("<h3>", page.read_text())[1:]:
        plot = re.search(r'Plotly\.newPlot\(\s*"[^"]+",\s*', section)
        assert plot is not None
        traces, end = json.JSONDecoder().raw_decode(section, plot.end())
        layout, _ = json.JSONDecoder().raw_decode(
            section, re.compile(r"\s*,\s*").match(section, end).end()
        )
        found[section.partition("<")[0]] = traces, layout
    return found


def compared(folder: Path, base: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    for name, state in {"a": base, "b": tuned}.items():
        torch.save(
            {key: torch.tensor(value) for key, value in state.items()}, folder / f"{name}.pth"
        )
    told = rg.diff(folder / "a.pth", folder / "b.pth")
    return drawn(rg.report(folder / "x.html", diff=told, force=True))


def rows(chart: tuple[list[dict[str, Any]], dict[str, Any]]) -> dict[str, float]:
    [trace], layout = chart
    names = [unescape(text).strip() for text in layout["yaxis"]["ticktext"]]
    assert trace["y"] == layout["yaxis"]["tickvals"]
    return dict(zip(names, trace["x"], strict=True))


def test_what_was_all_zero_is_drawn_by_its_size(tmp_path: Path) -> None:
    base = {"a.weight": [1.0, 2.0, 2.0], "a.bias": [0.0, 0.0], "7": [0.0], "b.bias": [0.0, 0.0],
            "c.weight": [1.0], "d.weight": [1.0], "b.still": [0.0]}  # fmt: skip
    tuned = base | {"a.weight": [1.0, 2.0, 3.5], "a.bias": [0.0, -0.25], "7": [3.0],
                    "b.bias": [0.125, 0.0], "c.weight": [float("nan")]}  # fmt: skip
    charts = compared(tmp_path, base, tuned)
    assert rows(charts["The largest changes"]) == {"a.weight": pytest.approx(0.5)}
    assert rows(charts["What was all 0 before"]) == {"a.bias": 0.25, "7": 3.0, "b.bias": 0.125}
    line, marks = charts["Drift by depth"][0]
    # Modules a, of the root (7), b and d; of c nothing is known.
    assert line["y"] == [pytest.approx((1.5**2 + 0.25**2) ** 0.5 / 3), None, None, 0.0]
    assert marks["x"] == [2, 3]
    assert marks["customdata"] == [3.0, 0.125]
    text = (tmp_path / "x.html").read_text()
    assert "1 more have NaN or Inf in every place" in text
    only = compared(tmp_path, {"x.a": [0.0], "y.a": [0.0]}, {"x.a": [1.0], "y.a": [2.0]})
    assert list(only) == ["What was all 0 before"]


def test_one_far_change_does_not_hide_the_others(tmp_path: Path) -> None:
    base = {f"l{i}.w": [1.0 + i, 2.0] for i in range(70)}
    tuned = {name: [a + 0.01 * (1 + i), b] for i, (name, (a, b)) in enumerate(base.items())}
    chart = compared(tmp_path, base, tuned)["The largest changes"]
    assert chart[0][0]["type"] == "bar"
    assert len(rows(chart)) == 60
    assert "The 60 furthest of 70 changed tensors" in (tmp_path / "x.html").read_text()
    tuned["l3.w"] = [1e5, 2.0]
    chart = compared(tmp_path, base, tuned)["The largest changes"]
    assert (chart[0][0]["mode"], chart[1]["xaxis"]["type"]) == ("markers", "log")


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Neither as numbers or dates, nor as the drawing library's markup; long ones by their ends."""
    names = ["1", "2020-01-01", "<a href='http://x.example'>w</a>", f"{'deep.' * 40}weight", "<b>"]
    charts = compared(tmp_path, {n: [1.0] for n in names}, {n: [2.0] for n in names})
    trace, layout = charts["The largest changes"][0][0], charts["The largest changes"][1]
    assert list(rows(charts["The largest changes"]))[:3] == names[:3]
    assert not any("<" in text for text in [*trace["text"], *layout["yaxis"]["ticktext"]])
    assert all(len(unescape(text)) < 80 for text in layout["yaxis"]["ticktext"])
    assert layout["yaxis"]["ticktext"][3].startswith("deep.deep.")
