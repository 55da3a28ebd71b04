"""<log_dir>/report.html: one page that holds all it shows, to be sent to a colleague."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from training.label_summary import LABELS_FILE
from training.metrics import calibration
from training.options import build_parser
from training.report_slides import whole_slides
from training.resume import read_metrics
from training.summary import count
from training.validate import Shown, Validation
from utils.pictures import PARTS, split_panel
from utils.reporting.charts import chart
from utils.reporting.page import number, table, write_page


def write_report(log_dir: Path, validation: Validation) -> None:
    """Write the report from the files of `log_dir` and its last validation."""
    rows = read_metrics(log_dir)
    options = json.loads((log_dir / "options.json").read_text())
    environment = json.loads((log_dir / "environment.json").read_text())
    labels = json.loads((log_dir / LABELS_FILE).read_text())
    last = next(row for row in reversed(rows) if row["split"] == "val")
    classes = [f"{value} {', '.join(names)}" for value, names in enumerate(labels["classes"])]
    status = f"step {last['step']:,} of {options['num_steps']:,} (images), {time.strftime('%Y-%m-%d %H:%M')}"
    parts = [
        f"<p>{status}; ranks: {html.escape(environment['ranks'])}</p>",
        _key_figures(rows, last),
        "<h2>Training</h2>",
        f'<div class="grid">{_curves(rows)}</div>',
        "<h2>Validation, class by class</h2>",
        f'<div class="grid">{_classes(last, classes, validation.counts.confusion)}{_reliability(validation)}</div>',
        whole_slides(log_dir, rows),
        "<h2>Labels</h2>",
        _labels(labels),
        "<h2>Validation, slide by slide</h2>",
        _slides(last["slides"]),
        "<h2>Worst validation patches</h2>",
        "<p>Patch, label, prediction, and the outlines of the label (black) and the prediction (yellow).</p>",
        _patches(validation.worst),
        "<h2>Best validation patches with tumour</h2>",
        _patches(validation.best),
        "<h2>Time</h2>",
        _text_table(_times(rows)),
        "<h2>Options</h2>",
        _options(options),
        "<h2>Environment</h2>",
        _text_table(environment.items()),
    ]
    title = f"{options['model']} {options['img_size']}² — {log_dir.name}"
    write_page(log_dir / "report.html", title, parts)


def _key_figures(rows: Sequence[dict[str, Any]], last: dict[str, Any]) -> str:
    best = max((row for row in rows if row["split"] == "val"), key=lambda row: row["miou"])
    seconds, waited, images = _seconds(rows, "train")
    figures = [
        ("validation mIoU", number(last["miou"])),
        (f"best mIoU, at step {best['step']:,}", number(best["miou"])),
        ("AUC of tumour", number(last["auc"])),
        ("calibration error", number(last["calibration_error"])),
        ("training images/s, all ranks", f"{images / seconds:.1f}" if seconds else "–"),
        ("waited for data", f"{waited / seconds:.1%}" if seconds else "–"),
    ]
    items = "".join(f"<li>{html.escape(name)}<br><b>{value}</b></li>" for name, value in figures)
    return f'<ul class="key">{items}</ul>'


def _seconds(rows: Iterable[dict[str, Any]], split: str) -> tuple[float, float, float]:
    """Return the seconds of all rows of a split, how many of them were spent waiting for data, and the images."""
    timed = [row for row in rows if row["split"] == split and "seconds" in row]
    seconds = [row["seconds"] for row in timed]
    waited = sum(s * row["sampler_wait"] for s, row in zip(seconds, timed))
    return sum(seconds), waited, sum(s * row["images_per_second"] for s, row in zip(seconds, timed))


def _times(rows: Sequence[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for split, name in (("train", "training"), ("val", "validation")):
        seconds, waited, images = _seconds(rows, split)
        part = f", {waited:.1f} s of it waiting for data ({waited / seconds:.1%})" if seconds else ""
        passes = sum(row["split"] == split for row in rows) if split == "val" else 0
        times = f" in {count(passes, 'validation')}" if passes else ""
        speed = f"; {images:,.0f} images{times}, {images / seconds:.1f} a second" if seconds else ""
        yield name, f"{_duration(seconds)}{part}{speed}"
    whole = [row["seconds"] for row in rows if row["split"] == "slides"]
    if whole:
        yield "whole slides", f"{_duration(sum(whole))} in {count(len(whole), 'validation')}"
    process = time.time() - psutil.Process().create_time()
    yield "in all", f"{_duration(process)} since the last start, with loading, graphs and checkpoints"


def _curves(rows: Sequence[dict[str, Any]]) -> str:
    shown = {
        "miou": "mIoU",
        "loss": "loss",
        "learning_rate": "learning rate",
        "images_per_second": "images/s",
    }
    parts = []
    for name, title in shown.items():

        def draw(axes: Any, name: str = name) -> None:
            for split, style, label in (("train", "-", "training"), ("val", "o-", "validation")):
                points = [(r["step"], r[name]) for r in rows if r["split"] == split and r[name] is not None]
                if points:
                    axes.plot(*zip(*points), style, label=label, markersize=4)
            axes.set(xlabel="step (images)")
            axes.legend()

        parts.append(chart(title, draw))
    return "".join(parts)


def _reliability(validation: Validation) -> str:
    bins = calibration(validation.counts.histogram)[0]

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], ":", color="grey")
        some = bins[:, 0] > 0
        axes.plot(bins[some, 1], bins[some, 2], "o-", markersize=4)
        axes.set(xlabel="predicted probability of tumour", ylabel="part of the pixels that is tumour")

    return chart("Reliability: on the dotted line probabilities are what they say", draw)


def _patches(patches: Iterable[Shown]) -> str:
    figures = []
    for shown in patches:
        images = zip(PARTS, split_panel(shown.picture), (".jpg", ".png", ".png", ".jpg"))
        parts = "".join(_image(pixels, name, ending) for name, pixels, ending in images)
        where = html.escape(f"{shown.slide}, x {shown.x_l0}, y {shown.y_l0}")
        caption = f"<figcaption><b>mIoU {shown.miou:.3f}</b> {where}</figcaption>"
        figures.append(f'<figure>{caption}<div class="parts">{parts}</div></figure>')
    return "".join(figures) or "<p>There are none.</p>"


def _image(pixels: np.ndarray, text: str, ending: str) -> str:
    """Return RGB pixels as an image inside of the page. A JPEG of tissue takes a fifth of a PNG."""
    content = cv2.imencode(ending, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    kind = {".jpg": "jpeg", ".png": "png"}[ending]
    return f'<img alt="{text}" src="data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}">'


def _classes(last: dict[str, Any], classes: Sequence[str], confusion: np.ndarray) -> str:
    names = ("iou", "dice", "precision", "recall")
    rows = (
        (text, *(number(last[name][i]) for name in names), f"{confusion[i].sum() / 1e6:.1f}")
        for i, text in enumerate(classes)
    )
    return table(("class", "IoU", "Dice", "precision", "recall", "Mpx"), rows)


def _labels(labels: dict[str, Any]) -> str:
    """Return a table of the area of each class on the slides for training and for validation."""
    parts = [labels["train"], labels["val"]]
    names = [names[0] for names in labels["classes"]]
    rows = [
        ("slides", *(f"{part['slides']}, {part['labelled']} with a label" for part in parts), ""),
        *(
            (name, *(f"{part['mm2'][value]:.4g} mm²" for part in parts), f"{labels['weights'][value]:.3g}")
            for value, name in enumerate(names)
        ),
        ("ignored", *(f"{part['ignored_mm2']:.4g} mm²" for part in parts), ""),
    ]
    if any(part["unmeasured"] for part in parts):
        rows.append(("not measured", *(f"{part['unmeasured']} slides" for part in parts), ""))
    return table(("", "training", "validation", "weight in the loss"), rows)


def _slides(slides: dict[str, dict[str, Any]]) -> str:
    """Return a table of the slides, the worst first."""
    ordered = sorted(slides.items(), key=lambda item: item[1]["miou"])
    rows = (
        (name, number(values["miou"]), number(values["dice"]), f"{values['pixels'] / 1e6:.1f}")
        for name, values in ordered
    )
    return table(("slide", "mIoU", "Dice of tumour", "Mpx"), rows)


def _options(options: dict[str, Any]) -> str:
    """Return a table of the options that differ from their default, and the others folded up."""
    parser = build_parser()
    lines = [
        (f"--{name}", _text(value), value == parser.get_default(name)) for name, value in options.items()
    ]
    given, usual = ([line[:2] for line in lines if line[2] is default] for default in (False, True))
    folded = f"<details><summary>{len(usual)} with their default</summary>{_text_table(usual)}</details>"
    return _text_table(given) + folded


def _text_table(rows: Iterable[Sequence[str]]) -> str:
    return table((), rows, "text")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
