"""What notebooks show of the nouns: small tables of HTML, escaped and bounded in length.

Names and texts come from files that others made: everything is escaped, and nothing is longer than
a person would read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

ROWS, _CHARACTERS = 100, 200


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], count: int) -> str:
    """A table under a caption; of `count` rows the first hundred, and how many more there are."""
    shown = list(islice(rows, ROWS))
    lines = [f"<p><b>{_text(caption)}</b></p>", '<table style="text-align: left">']
    lines.append(_row("th", head))
    lines += [_row("td", row) for row in shown]
    lines.append("</table>")
    if count > len(shown):
        lines.append(f"<p>… and {count - len(shown):,} more</p>")
    return f"<div>{''.join(lines)}</div>"


def _row(cell: str, values: Iterable[object]) -> str:
    cells = (f'<{cell} style="text-align: left">{_text(value)}</{cell}>' for value in values)
    return f"<tr>{''.join(cells)}</tr>"


def _text(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    if len(text) > _CHARACTERS:
        text = f"{text[: _CHARACTERS // 2]} … {text[-_CHARACTERS // 4 :]}"
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return escape(printable)
