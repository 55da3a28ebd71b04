"""The rows of a table of scores as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.folds import text_of

Cells = Mapping[tuple[str, str], Mapping[str, Any]]  # by dataset and model, see `evaluation.table`
Order = Sequence[tuple[str, str]]

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "²": "\\textsuperscript{2}", "×": "$\\times$",
}  # fmt: skip


def markdown(cells: Cells, order: Order, titles: Mapping[str, str]) -> str:
    """Return a Markdown table. The best value of each dataset is bold where there is more than one model.

    `titles`: of each score, in the order of the columns; scores that no cell has are left out.
    """

    def shown(value: str, ends: str, best: bool) -> str:
        return f"**{value}** {ends}".strip() if best else f"{value} {ends}".strip()

    return text_of(*_rows(cells, order, titles, shown))


def latex(cells: Cells, order: Order, titles: Mapping[str, str]) -> str:
    r"""Return the same table as a LaTeX `tabular`, for which the document needs \usepackage{booktabs}."""

    def shown(value: str, ends: str, best: bool) -> str:
        number = f"\\textbf{{{value}}}" if best else value
        return f"{number} {{\\footnotesize {ends}}}" if ends else number

    head, rows = _rows(cells, order, titles, shown)
    rows = [[*map(escaped, row[:3]), *row[3:]] for row in rows]
    lines = [" & ".join(row) + r" \\" for row in ([*map(escaped, head)], *rows)]
    columns = "llr" + "l" * (len(head) - 3)
    top = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*top, *lines[1:], r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    """Return a text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _rows(
    cells: Cells, order: Order, titles: Mapping[str, str], shown: Any
) -> tuple[list[str], list[list[str]]]:
    names = [name for name in titles if any(cells[place]["scores"].get(name) is not None for place in order)]
    models = {model for _, model in order}
    best = {
        (dataset, name): max(
            (
                cells[place]["scores"][name]
                for place in order
                if place[0] == dataset and _has(cells[place], name)
            ),
            default=None,
        )
        for dataset, _ in order
        for name in names
    }
    rows = []
    for dataset, model in order:
        cell = cells[dataset, model]
        row = [dataset, model, str(cell["slides"])]
        for name in names:
            if not _has(cell, name):
                row.append("–")
                continue
            value, ends = cell["scores"][name], cell["intervals"].get(name)
            is_best = len(models) > 1 and value == best[dataset, name]
            row.append(shown(f"{value:.3f}", "({:.3f} to {:.3f})".format(*ends) if ends else "", is_best))
        rows.append(row)
    return ["dataset", "model", "slides", *(titles[name] for name in names)], rows


def _has(cell: Mapping[str, Any], name: str) -> bool:
    return cell["scores"].get(name) is not None
