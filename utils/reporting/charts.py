"""Charts as SVG inside a page: sharp at all sizes, in the page's colours, their text as text."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.figure

INK = "#010203"  # stands for the page's own colour of text, which replaces it
STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    },
    **{"axes.spines.top": False, "axes.spines.right": False, "savefig.transparent": True},
}


def chart(title: str, draw: Callable[[Any], None]) -> str:
    """Return a <figure> with what `draw` draws into its axes."""
    buffer, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(5, 2.8), layout="constrained")
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue().replace(INK, "currentColor")
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[0-9.]*pt"', "", svg[svg.index("<svg") :])
    text = html.escape(title)
    label = f'<svg role="img" aria-label="{text}"'
    return f"<figure><figcaption>{text}</figcaption>{svg.replace('<svg', label, 1)}</figure>"
