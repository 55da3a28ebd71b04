"""<log_dir>/report.html: one page that holds all it shows, to be sent to a colleague."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib.figure
import numpy as np
import tensorflow as tf

from utils.files import write_aside
from utils.metrics import calibration
from utils.resume import read_metrics
from utils.validate import Shown, Validation

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
figure { margin: 0 0 1rem; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; } img.chart { background: #fff; border-radius: .3rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
.key { display: flex; flex-wrap: wrap; gap: .5rem 2rem; padding: 0; list-style: none; } .key b { font-size: 1.3rem; }
"""


def write_report(log_dir: Path, validation: Validation) -> None:
    """From the files of `log_dir` and its last validation; under another name until it is whole."""
    rows = read_metrics(log_dir)
    options = json.loads((log_dir / "options.json").read_text())
    last = next(row for row in reversed(rows) if row["split"] == "val")
    parts = [
        _key_figures(rows, last),
        "<h2>Training</h2>",
        f'<div class="grid">{_curves(rows)}</div>',
        "<h2>Validation, class by class</h2>",
        f'<div class="grid">{_classes(last)}{_calibration(validation.counts.histogram)}</div>',
        "<h2>Slides</h2>",
        _slides(last["slides"]),
        "<h2>Worst patches</h2>",
        _patches(validation.worst),
        "<h2>Best patches with tumour</h2>",
        _patches(validation.best),
        "<h2>Options</h2>",
        _table(("option", "value"), ((f"--{name}", _text(value)) for name, value in options.items())),
        "<h2>Environment</h2>",
        _table(("", ""), ((name, _text(value)) for name, value in _environment().items())),
    ]
    title = html.escape(f"{options['model']} {options['img_size']}² — {log_dir.name}")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )
    write_aside(log_dir / "report.html", lambda path: path.write_text(page, encoding="utf-8"))


def _key_figures(rows: Sequence[dict[str, Any]], last: dict[str, Any]) -> str:
    best = max((row for row in rows if row["split"] == "val"), key=lambda row: row["miou"])
    train = next((row for row in reversed(rows) if row["split"] == "train"), {})
    figures = [
        ("validation mIoU", _number(last["miou"])),
        (f"best, at step {best['step']}", _number(best["miou"])),
        ("AUC", _number(last["auc"])),
        ("calibration error", _number(last["calibration_error"])),
        ("steps", f"{last['step']:,}"),
        ("images/s, all ranks", f"{train.get('images_per_second', math.nan):.1f}"),
        ("waited for data", f"{train.get('sampler_wait', math.nan):.1%}"),
    ]
    items = "".join(f"<li>{html.escape(name)}<br><b>{value}</b></li>" for name, value in figures)
    return f'<ul class="key">{items}</ul>'


def _curves(rows: Sequence[dict[str, Any]]) -> str:
    shown = (
        ("miou", "mIoU"),
        ("loss", "loss"),
        ("learning_rate", "learning rate"),
        ("images_per_second", "images/s"),
    )
    parts = []
    for name, title in shown:
        figure, axes = _axes()
        for split, style in (("train", "-"), ("val", "o-")):
            points = [
                (row["step"], row[name]) for row in rows if row["split"] == split and row[name] is not None
            ]
            if points:
                axes.plot(*zip(*points), style, label=split, markersize=4)
        axes.set(xlabel="step (images)", ylabel=title)
        axes.legend()
        parts.append(_chart(figure, f"{title} against the step"))
    return "".join(parts)


def _calibration(histogram: np.ndarray) -> str:
    bins = calibration(histogram)[0]
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], ":", color="grey")
    some = bins[:, 0] > 0
    axes.plot(bins[some, 1], bins[some, 2], "o-")
    axes.set(xlabel="predicted probability of tumour", ylabel="part of the pixels that is tumour")
    return _chart(figure, "Reliability: on the dotted line probabilities are what they say")


def _axes() -> tuple[Any, Any]:
    figure = matplotlib.figure.Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _chart(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return _figure(buffer.getvalue(), caption, "chart")


def _figure(png: bytes, caption: str, kind: str = "") -> str:
    data, text = base64.b64encode(png).decode(), html.escape(caption)
    image = f'<img class="{kind}" alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _patches(patches: Iterable[Shown]) -> str:
    """Patch, label, prediction, and both outlines."""
    figures = []
    for shown in patches:
        png = cv2.imencode(".png", cv2.cvtColor(shown.picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        where = f"{shown.slide}, x {shown.x_l0}, y {shown.y_l0}"
        figures.append(
            _figure(png, f"mIoU {shown.miou:.3f}: {where}. Patch, label, prediction, both outlines")
        )
    return f'<div class="grid">{"".join(figures)}</div>' if figures else "<p>There are none.</p>"


def _classes(last: dict[str, Any]) -> str:
    names = ("iou", "dice", "precision", "recall")
    rows = ((f"class {i}", *(_number(last[name][i]) for name in names)) for i in range(len(last["iou"])))
    return _table(("class", "IoU", "Dice", "precision", "recall"), rows)


def _slides(slides: dict[str, dict[str, Any]]) -> str:
    """The worst first."""
    ordered = sorted(slides.items(), key=lambda item: item[1]["miou"])
    rows = (
        (name, _number(values["miou"]), _number(values["dice"]), f"{values['pixels'] / 1e6:.1f}")
        for name, values in ordered
    )
    return _table(("slide", "mIoU", "Dice of tumour", "Mpx"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{row(head, "th")}{body}</table></div>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _environment() -> dict[str, Any]:
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "machine": f"{platform.node()}, {platform.machine()}, {platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "GPUs of rank 0's node": len(gpus),
    }
