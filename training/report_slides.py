"""The part of report.html about whole slides, from metrics.jsonl and the pictures in the log_dir."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.whole_slides import HEADLINES, SIZES
from training.run_log import SLIDE_PICTURES
from utils.reporting.charts import chart
from utils.reporting.page import interval, number, table


def whole_slides(log_dir: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Return the section, "" if there was no validation on whole slides. `rows`: of metrics.jsonl."""
    found = [row for row in rows if row["split"] == "slides"]
    if not found:
        return ""
    last = found[-1]
    slides = sorted(
        last["slides"].items(), key=lambda item: item[1]["miou"] if item[1]["miou"] is not None else 2.0
    )
    left_out = [(name, reason) for name, reason in sorted(last["left_out"].items())]
    parts = [
        "<h2>Whole slides</h2>",
        f"<p>Step {last['step']:,}: {len(slides)} of {last['slides_asked']} slides in {last['seconds']:.0f} s. "
        f"False positives per slide without tumour: {number(last['false_positives_per_normal_slide'])}.</p>",
        f'<div class="grid">{_curves(found)}<div>{_scores(last)}{_sizes(last)}</div></div>',
        _slides(slides),
        table(("left out", "because"), left_out, "text") if left_out else "",
        "<p>Probability as a heat map, outlines of the prediction (yellow) and of the label (black).</p>",
        f'<div class="grid">{"".join(_picture(log_dir, name) for name, _ in slides)}</div>',
    ]
    return "".join(parts)


def _curves(found: Sequence[dict[str, Any]]) -> str:
    def draw(axes: Any) -> None:
        for name, title in HEADLINES.items():
            points = [(row["step"], row[name]) for row in found if row[name] is not None]
            if points:
                axes.plot(*zip(*points), "o-", label=title, markersize=4)
        axes.set(xlabel="step (images)", ylim=(0, 1.02))
        if axes.lines:
            axes.legend()

    return chart("Scores of whole slides", draw)


def _scores(last: dict[str, Any]) -> str:
    rows = [
        (title, number(last[name]), interval(last["intervals"].get(name)))
        for name, title in HEADLINES.items()
    ]
    return table(("whole slides", "score", "95 % interval"), rows)


def _sizes(last: dict[str, Any]) -> str:
    rows = [(size, str(last["lesions"][size]), number(last["sensitivity"][size])) for size in SIZES]
    return table(("lesions", "number", "part that is found"), rows)


def _slides(slides: Sequence[tuple[str, dict[str, Any]]]) -> str:
    rows = (
        (
            name,
            number(values["miou"]),
            number(values["dice"]),
            number(values["probability"]),
            f"{values['lesions_found']} of {values['lesions']}",
            "–" if values["false_positives"] is None else str(values["false_positives"]),
        )
        for name, values in slides
    )
    return table(("slide", "mIoU", "Dice of tumour", "probability", "lesions found", "false positives"), rows)


def _picture(log_dir: Path, name: str) -> str:
    path = log_dir / SLIDE_PICTURES / f"{name}.jpg"
    if not path.exists():
        return ""
    text = html.escape(name)
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><figcaption>{text}</figcaption><img class="slide" alt="{text}" '
        f'src="data:image/jpeg;base64,{content}"></figure>'
    )
