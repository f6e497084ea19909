"""Charts, drawn by plotly."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from regraft.errors import MissingDependency

if TYPE_CHECKING:
    from regraft.lineage import Diff
    from regraft.tuning import Tuned
    from regraft.verification import Report

_INK, _ACCENT, _SECOND, _GRID = "#57606a", "#0969da", "#bc4c00", "rgba(128,128,128,0.25)"
# More bars than this cannot be read; the largest changes are drawn.
_BARS = 60
# So many times the median's length, one bar leaves none to the others.
_APART = 50
# Of a name; the end says more than the beginning.
_LETTERS = 72
# Errors of nothing at all, on a scale that has no zero.
_LEAST = 1e-9


def _figure() -> Any:
    try:
        graph_objects = importlib.import_module("plotly.graph_objects")
    except ImportError as error:
        raise MissingDependency("plotly", extra="report", purpose="charts") from error
    return graph_objects.Figure()


def _html(figure: Any, first: bool, height: int) -> str:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        legend={"orientation": "h", "y": 1.12, "x": 0},
        hovermode="closest",
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    config = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=first, config=config)


def learning_curve(tuned: Tuned, *, first: bool) -> str:
    """Training and validation loss by epoch, with the best epoch marked."""
    figure = _figure()
    epochs = [epoch.number for epoch in tuned.curve]
    losses = {
        "training loss": ([epoch.loss for epoch in tuned.curve], _ACCENT),
        "validation loss": ([epoch.val_loss for epoch in tuned.curve], _SECOND),
    }
    for name, (values, color) in losses.items():
        if any(value is not None for value in values):
            line = {"color": color, "width": 2}
            figure.add_scatter(x=epochs, y=values, name=name, mode="lines", line=line)
    figure.add_vline(
        x=tuned.best, line_dash="dot", line_color=_INK, annotation_text=f"best: {tuned.best}"
    )
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="loss")
    return _html(figure, first, 340)


def drift(diff: Diff, *, first: bool) -> str:
    """How far each module moved, in the file's order: from the input to the output in most.

    A module that was all 0 before has no place on such a scale: it is marked above the line."""
    modules = {path: m for path, m in diff.modules().items() if m.rel_l2 == m.rel_l2}
    places = {path: number for number, path in enumerate(modules, 1)}
    new = [path for path, module in modules.items() if module.rel_l2 == float("inf")]
    heights = [None if path in new else module.rel_l2 for path, module in modules.items()]
    figure = _figure()
    figure.add_scatter(
        x=list(places.values()),
        y=heights,
        text=[_label(path or "(root)") for path in modules],
        name="relative change",
        mode="lines+markers",
        line={"color": _ACCENT, "width": 2},
        hovertemplate="%{text}<br>relative L2 %{y:.3g}<extra></extra>",
    )
    if new:
        figure.add_scatter(
            x=[places[path] for path in new],
            y=[1.08 * max((h for h in heights if h is not None), default=0) or 1.0] * len(new),
            text=[_label(path or "(root)") for path in new],
            customdata=[modules[path].max_abs for path in new],
            name="was all 0 before: no relative change",
            mode="markers",
            marker={"color": _SECOND, "symbol": "triangle-up-open", "size": 10},
            hovertemplate="%{text}<br>was all 0; now up to %{customdata:.3g}<extra></extra>",
        )
    figure.update_xaxes(title="module, in the file's order")
    figure.update_yaxes(title="‖after − before‖ / ‖before‖", rangemode="tozero")
    return _html(figure, first, 320)


def changes(diff: Diff, *, first: bool) -> str:
    """How far tensors moved, relative to their size; in the file's order, the furthest ones."""
    moved = {n: e.rel_l2 for n, e in diff.items() if e.status == "moved" and not e.from_zero}
    told = {name: value for name, value in moved.items() if value == value}
    lost = len(moved) - len(told)
    note = f"; {lost} more have NaN or Inf in every place, and no length" if lost else ""
    drawn = _bars(told, "‖after − before‖ / ‖before‖", "relative L2", _ACCENT, first)
    return _caption(len(told), f"changed tensors{note}") + drawn


def from_zero(diff: Diff, *, first: bool) -> str:
    """The largest values of tensors that were all 0 before, which no relative change is of."""
    told = {name: entry.max_abs for name, entry in diff.items() if entry.from_zero}
    drawn = _bars(told, "largest absolute value now", "largest value", _SECOND, first)
    return (
        _caption(len(told), "tensors; nothing is relative to 0, so their values are drawn") + drawn
    )


def _caption(count: int, told: str) -> str:
    shown = f"The {_BARS} furthest of {count:,}" if count > _BARS else f"{count:,}"
    return f'<p class="soft">{shown} {told}.</p>'


def _bars(values: Mapping[str, float], title: str, word: str, color: str, first: bool) -> str:
    """A row for each tensor, in order; of many, those of the largest values. Dots on a scale of
    powers where bars of one length would hide the rest."""
    largest = set(sorted(values, key=lambda name: -values[name])[:_BARS])
    names = [name for name in values if name in largest]
    x = [values[name] for name in names]
    rows = list(range(len(names)))
    hover = {"text": list(map(_label, names)), "textposition": "none"}
    hover["hovertemplate"] = f"%{{text}}<br>{word} %{{x:.3g}}<extra></extra>"
    figure = _figure()
    if min(x) > 0 and max(x) > _APART * sorted(x)[len(x) // 2]:
        del hover["textposition"]
        figure.add_scatter(x=x, y=rows, mode="markers", marker={"color": color, "size": 9}, **hover)
        figure.update_xaxes(title=f"{title}, by powers of ten", type="log", dtick=1)
    else:
        figure.add_bar(x=x, y=rows, orientation="h", marker_color=color, **hover)
        figure.update_xaxes(title=title)
    figure.update_yaxes(
        tickmode="array", tickvals=rows, ticktext=[f"{_label(name)} " for name in names],
        range=[len(names) - 0.5, -0.5], tickfont={"family": "ui-monospace, monospace"},
    )  # fmt: skip
    return _html(figure, first, 110 + 20 * len(names))


def _label(name: str) -> str:
    """A name as it is, and none of the drawing library's markup; what is long, by its ends."""
    if len(name) > _LETTERS:
        name = f"{name[: _LETTERS // 3]}…{name[-2 * _LETTERS // 3 :]}"
    return escape(name)


def errors(report: Report, *, first: bool) -> str:
    """The error of each module's results on the source's own inputs, in the order of the calls."""
    figure = _figure()
    names = [_label(f"{step.path or 'the model'} ({step.number})") for step in report.steps]
    figure.add_scatter(
        x=list(range(len(names))),
        y=[max(step.output, _LEAST) for step in report.steps],
        text=names,
        mode="lines+markers",
        line={"color": _ACCENT, "width": 1},
        hovertemplate="%{text}<br>relative error %{y:.3g}<extra></extra>",
    )
    figure.update_xaxes(title="calls of modules")
    figure.update_yaxes(title="relative error", type="log")
    return _html(figure, first, 340)
