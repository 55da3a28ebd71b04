"""Tables and numbers of the pages that are made of runs."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return an HTML table of texts, which may be wider than the window. `kind`: its class in the page's style."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = (row(head, "th") if head else "") + "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def number(value: float | None) -> str:
    """Return a score with four digits, a dash for None."""
    return "–" if value is None else f"{value:.4f}"
