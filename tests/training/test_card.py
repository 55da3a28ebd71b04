"""The model card: what the run knows is in it, and what it does not know says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.card import CARD, FILL_IN, MARKDOWN, make_card, write_card
from training.label_summary import LabelSummary, RunLabels
from training.metrics import AUC_BINS, Counts
from training.option_checks import parse_options
from training.options import option_values

CLASSES = [["other"], ["Tumor", "_0|1"]]


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    options = parse_options(["--slide_path", str(tmp_path), "--resolution", "0.5", "--img_size", "1024"])
    labels = RunLabels(CLASSES, [1, 1], None, LabelSummary(5, 3, {0: 12.5, 1: 0.25}, {}, 0),
                       LabelSummary(2, 1, {0: 2.5, 255: 3.0}, {}, 0))  # fmt: skip
    write = {
        "options.json": option_values(options),
        "labels.json": labels.to_json(),
        "environment.json": {"suite": "0.1.0, sources abc", "command": "python train.py --slide_path 'a b'"},
    }
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value))
    counts = Counts(2)
    counts.add(np.array([[90, 10], [20, 80]]), np.ones((2, AUC_BINS), int), 0.5, 4)
    slides = {"froc_official": 0.5, "froc_corrected": None, "slide_auc": 1.0, "slide_miou": 0.75, "slide_dice": 0.8,
              "sensitivity": {"itc": None, "micro": 0.5, "macro": 1.0}, "false_positives_per_normal_slide": 2.0,
              "intervals": {"froc_official": [0.25, 0.75], "slide_auc": None},
              "slides": {"a": {}, "b": {}}}  # fmt: skip
    rows = [
        {"step": 10, "split": "val", **counts.summary(), "slides": {"a": {}}},
        {"step": 20, "split": "train"},
        {"step": 20, "split": "slides", **slides},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_a_program_needs_is_in_the_card(log_dir, tmp_path):
    write_card(tmp_path, make_card(log_dir, CLASSES))
    card = json.loads((tmp_path / CARD).read_text())
    assert card["input"] == {
        "pixels": "uint8 RGB (batch, height, width, 3)",
        "tile": 1024,
        "overlap": 0.25,
        "spacing_um": 0.5,
        "field_of_view_um": 512,
    }
    assert card["classes"] == CLASSES
    assert card["scores"]["patches"]["miou"] == pytest.approx((90 / 120 + 80 / 110) / 2)
    assert card["scores"]["whole_slides"]["slides"] == 2
    assert card["scores"]["whole_slides"]["intervals"]["froc_official"] == [0.25, 0.75]
    assert card["version"] == "0.1.0, sources abc"
    assert (card["licence"], card["intended_use"]) == (FILL_IN, FILL_IN)


def test_the_page_has_scores_with_intervals_and_no_broken_table(log_dir, tmp_path):
    write_card(tmp_path, make_card(log_dir, CLASSES))
    text = (tmp_path / MARKDOWN).read_text()
    assert "| froc official | 0.5000 | 0.2500 to 0.7500 |" in text
    assert "| froc corrected | – |  |" in text
    assert "| sensitivity | itc –, micro 0.5000, macro 1.0000 |  |" in text
    assert "| slides | 5, 3 with a label | 2, 1 with a label |" in text
    assert f"| licence | {FILL_IN} |" in text
    assert "patches of 1024² (512 µm), overlap 0.25" in text
    assert "Tumor, _0\\|1" in text


def test_a_run_without_whole_slides_and_at_level_0_has_a_card_too(log_dir):
    options = json.loads((log_dir / "options.json").read_text())
    (log_dir / "options.json").write_text(json.dumps({**options, "resolution": None}))
    rows = (log_dir / "metrics.jsonl").read_text().splitlines()[:1]
    (log_dir / "metrics.jsonl").write_text(rows[0] + "\n")
    card = make_card(log_dir, CLASSES)
    assert list(card["scores"]) == ["patches"]
    assert card["input"]["field_of_view_um"] is None
