"""Pages that hold all they show, to be sent to a colleague: reports of runs and of cross-validations."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.files import write_atomically

STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0 .8rem; } figure { margin: 0 0 1.2rem; } figcaption { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 0 .2rem 1rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; vertical-align: top; }
.text :is(th, td) { text-align: left; } .text td + td { white-space: normal; overflow-wrap: anywhere; }
.grid { display: grid; gap: .5rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); }
.parts { display: grid; gap: .3rem; grid-template-columns: repeat(4, 1fr); }
.slide { width: 100%; height: auto; outline: 1px solid var(--line); }
.parts img { width: 100%; height: auto; outline: 1px solid var(--line); }
.key { display: flex; flex-wrap: wrap; gap: .5rem 2rem; padding: 0; list-style: none; } .key b { font-size: 1.3rem; }
summary { cursor: pointer; margin: .5rem 0; }
@media (max-width: 40rem) { .parts { grid-template-columns: repeat(2, 1fr); } table { font-size: .85rem; }
th, td { padding-left: .5rem; } }
"""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page with a `title` (a text) and `parts` (HTML), whole or not at all."""
    title = html.escape(title)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )
    write_atomically(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return an HTML table of texts, which may be wider than the window. `kind`: its class in the page's style."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = (row(head, "th") if head else "") + "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def number(value: float | None) -> str:
    """Return a score with four digits, a dash for None."""
    return "–" if value is None else f"{value:.4f}"


def interval(ends: Sequence[float] | None) -> str:
    """Return both ends of a score's interval with four digits, a dash for None."""
    return "{:.4f} to {:.4f}".format(*ends) if ends else "–"
