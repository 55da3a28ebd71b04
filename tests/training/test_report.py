"""The report, from made-up files of a run; looked at in a browser where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.browser import CHROMIUM, Browser
from training.label_summary import LabelSummary, RunLabels
from training.metrics import AUC_BINS, Counts
from training.option_checks import parse_options
from training.options import option_values
from training.report import write_report
from training.validate import Shown, Validation
from utils.pictures import panel

LABELS = LabelSummary(3, 2, {0: 12.5, 1: 0.25, 255: 3.0}, {"Tumor": 7}, 1)
SLIDE = "a_very_long_name_of_a_slide_without_a_space_in_it_" * 2


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log_dir = tmp_path_factory.mktemp("run") / ("a_run_with_a_long_name_" * 4)
    log_dir.mkdir()
    options = parse_options(
        ["--slide_path", str(log_dir), "--learning_rate", "0.125", "--label_map", "<b>:1"]
    )
    write = {
        "options.json": option_values(options),
        "labels.json": RunLabels([["other"], ["<b>"]], [1, 2.5], None, LABELS, LABELS).to_json(),
        "environment.json": {"ranks": "2 on 1 node: vm (2)", "command": "python train.py " + "/a/path" * 40},
    }
    for name, value in write.items():
        (log_dir / name).write_text(json.dumps(value))
    rng = np.random.default_rng(0)
    counts = Counts(2)
    counts.add(np.array([[90, 10], [20, 80]]), rng.integers(1, 9, (2, AUC_BINS)), 0.5, 4)
    images = rng.integers(0, 255, (4, 300, 300, 3)).astype(np.uint8)
    labels = np.zeros((4, 300, 300), np.uint8)
    labels[:, 80:200, 50:] = 1
    shown = [Shown(0.5, SLIDE, 100000, 20000, 0.5, panel(im, la, 1 - la)) for im, la in zip(images, labels)]
    found = Validation(counts, 30.0, 0.25, 0, {SLIDE: counts.confusion}, shown, shown, shown[:1])
    train = {**counts.summary(), "sampler_wait": 0.1, "learning_rate": 1e-3, "bad_slides": 0}
    rows = [
        {"step": step, "split": "train", **train, "seconds": 3600.0, "images_per_second": 2.0}
        for step in (7200, 14400)
    ]
    rows.append({"step": 14400, "split": "val", **found.values()})
    (log_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(log_dir, found)
    return log_dir / "report.html"


def test_all_is_in_the_page(report):
    text = report.read_text()
    for cell in ("12.5 mm²", "0.25 mm²", "3 mm²", "3, 2 with a label", "1 slides", "2.5", "&lt;b&gt;"):
        assert f"<td>{cell}</td>" in text, cell
    assert text.count('src="data:image/') == text.count("<img ") == 5 * 4
    assert text.count("<svg ") == 5
    assert "http" not in text
    assert report.stat().st_size < 3_000_000


def test_time_is_summed_over_the_run(report):
    text = report.read_text()
    assert "2:00:00, 720.0 s of it waiting for data (10.0%); 14,400 images, 2.0 a second" in text
    assert "0:00:30, 7.5 s of it waiting for data (25.0%); 4 images in 1 validation, 0.1 a second" in text


def test_options_that_are_not_the_default_stand_first(report):
    before, _, folded = report.read_text().partition("<details>")
    assert "--learning_rate</td><td>0.125" in before
    assert "--img_size" not in before
    assert "--img_size</td><td>1024" in folded


def test_names_are_no_markup(report):
    assert "1 &lt;b&gt;" in report.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_fits_the_window_and_can_be_read(report, width, dark, tmp_path):
    with Browser(width, dark=dark) as browser:
        browser.open(f"file://{report}")
        assert browser.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert browser.evaluate("[...document.querySelectorAll('svg, img')].every(e => e.clientWidth > 100)")
        # Text of tables of text breaks; tables of numbers may scroll for themselves.
        assert browser.evaluate(
            "[...document.querySelectorAll('.text')].every(e => e.offsetWidth < innerWidth)"
        )
        lightness = (
            "(element, name) => { const [r, g, b] = getComputedStyle(element)[name].match(/[0-9.]+/g).map(Number); "
            "return (r + g + b) / 765 }"
        )
        ink = browser.evaluate(f"({lightness})(document.querySelector('svg text'), 'fill')")
        assert ink > 0.8 if dark else ink < 0.2
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000
