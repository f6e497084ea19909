"""Charts, drawn by plotly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regraft.errors import MissingDependency

if TYPE_CHECKING:
    from regraft.lineage import Diff
    from regraft.tuning import Tuned
    from regraft.verification import Report

_INK, _ACCENT, _SECOND, _GRID = "#57606a", "#0969da", "#bc4c00", "rgba(128,128,128,0.25)"
# More bars than this cannot be read; the largest changes are drawn.
_BARS = 60
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
    """How far each module moved, in the file's order: from the input to the output in most."""
    modules = {path: m for path, m in diff.modules().items() if m.rel_l2 == m.rel_l2}
    figure = _figure()
    figure.add_scatter(
        x=list(range(1, len(modules) + 1)),
        y=[module.rel_l2 for module in modules.values()],
        text=[path or "(root)" for path in modules],
        mode="lines+markers",
        line={"color": _ACCENT, "width": 2},
        hovertemplate="%{text}<br>relative L2 %{y:.3g}<extra></extra>",
    )
    figure.update_xaxes(title="module, in the file's order")
    figure.update_yaxes(title="‖after − before‖ / ‖before‖", rangemode="tozero")
    return _html(figure, first, 320)


def changes(diff: Diff, *, first: bool) -> str:
    """How far each tensor moved, relative to its size; in the file's order."""
    moved = {n: e for n, e in diff.items() if e.status == "moved" and e.rel_l2 == e.rel_l2}
    largest = sorted(moved, key=lambda name: -moved[name].rel_l2)[:_BARS]
    names = [name for name in moved if name in set(largest)]
    figure = _figure()
    figure.add_bar(
        x=[moved[name].rel_l2 for name in names],
        y=names,
        orientation="h",
        marker_color=_ACCENT,
        hovertemplate="%{y}<br>relative L2 %{x:.3g}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", tickfont={"family": "ui-monospace, monospace"})
    figure.update_xaxes(title="‖after − before‖ / ‖before‖")
    return _html(figure, first, 110 + 20 * len(names))


def errors(report: Report, *, first: bool) -> str:
    """The error of each module's results on the source's own inputs, in the order of the calls."""
    figure = _figure()
    names = [f"{step.path or 'the model'} ({step.number})" for step in report.steps]
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
