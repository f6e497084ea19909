"""What notebooks show: escaped, bounded, and with the facts in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regraft as rg

EVIL = "<script>alert('x')</script>\x1b[31m"
_VOID = {"br"}


class Checked(HTMLParser):
    """Tags that are open, and the text; every tag must be one of ours and be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("div", "p", "b", "table", "tr", "th", "td")
        assert {key for key, _ in attrs} <= {"style"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_every_noun_is_shown_escaped(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    arrays = {
        f"{EVIL}.weight": np.eye(3, dtype=np.float32),
        f"{EVIL}.bias": np.arange(3, dtype=np.float32),
    }
    rg.convert(arrays, path)
    with rg.open(path) as checkpoint:
        model = torch.nn.Linear(3, 3)
        plan = rg.plan(checkpoint, model)
        x = np.ones((2, 3), np.float32)
        receipt = rg.load(checkpoint, model)
        report = rg.verify(model, rg.Probe(x, x))
        moved = {name: array + 1 for name, array in arrays.items()}
        rg.save(model, tmp_path / "mine.safetensors", receipt=receipt)
        lineage, tree = rg.trace(tmp_path / "mine.safetensors"), rg.family_tree(tmp_path)
        shown = [checkpoint, plan, receipt, report, rg.diff(path, moved), lineage, tree]
        texts = [Checked(noun._repr_html_()).text for noun in shown]  # pyright: ignore
    for text, wanted in zip(
        texts,
        ["float32", "complete", "tensors loaded", "different", "2 moved", "2 loaded", "2 files"],
        strict=True,
    ):
        assert wanted in text
        assert "\x1b" not in text
    assert EVIL.replace("\x1b", "\\x1b") in texts[0]
    assert plan.target.tensors.keys() <= set(texts[2].split("\n"))


def test_what_is_shown_is_bounded() -> None:
    many = {f"{'x' * 1000}{i}": np.zeros(1, np.float32) for i in range(2000)}
    from regraft import targets

    html = targets.find(many).skeleton(many)._repr_html_()
    assert len(html) < 60_000
    assert "and 1,900 more" in Checked(html).text
    assert len(rg.diff(many, many)._repr_html_()) < 60_000
