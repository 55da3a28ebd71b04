"""The options of predict.py, and what they become."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tensorflow as tf

import predict
from prediction.store import WORK, PredictionSettings
from prediction.work import Opened
from tests.helpers.lesion_slides import make_slide
from tests.helpers.unread_options import unread_options
from training.checkpoint import save_checkpoint
from utils.cli import UserError


def test_every_option_is_read_by_the_program():
    files = ["predict.py", "prediction/*.py", "utils/startup.py"]
    assert unread_options(predict.build_parser(), files) == set()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A log_dir with all that is looked at before a model is loaded, and a slide beside it."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "saved_model.pb").touch()
    values = {"mixed_precision": "float32", "img_size": 256, "resolution": 0.5, "bb_downsample": 4}
    network = {"model": "effdetd0", "fpn_min_level": 3, "fpn_cells": None, "output_stride": 16}
    (folder / "options.json").write_text(json.dumps({**network, **values}))
    save_checkpoint(folder / "checkpoints", tf.train.Checkpoint(v=tf.Variable([1.0])), {"step": 4})
    (tmp_path / "a.tif").touch()
    return folder


def words_of(run_dir: Path, more: str) -> list[str]:
    output, slide = run_dir.parent / "out", run_dir.parent / "a.tif"
    return [f"--model_path={run_dir}", f"--slide_path={slide}", f"--output={output}", *more.split()]


def test_settings_are_as_asked_else_as_trained(run_dir):
    def settings(more: str) -> dict:
        options, source, _ = predict.parse_options(words_of(run_dir, more))
        return asdict(predict.settings_of(options, source))

    asked = settings(
        "--img_size 384 --overlap 0.5 --batch_size 5 --resolution 2 --no-tissue_only --tta "
        "--mixed_precision bfloat16 --threshold 0 --min_lesion_mm 0.5"
    )
    else_ = settings("")
    assert len(asked.pop("model")) == len(else_.pop("model")) == 16
    assert asked == {
        "img_size": 384, "overlap": 0.5, "batch_size": 5, "resolution": 2.0, "tissue_only": False, "tta": True,
        "mixed_precision": "bfloat16", "threshold": 0.0, "min_lesion_mm": 0.5, "bb_downsample": 4,
    }  # fmt: skip
    assert else_ == {
        "img_size": 256, "overlap": 0.25, "batch_size": 2, "resolution": 0.5, "tissue_only": True, "tta": False,
        "mixed_precision": "float32", "threshold": 0.5, "min_lesion_mm": 0.075, "bb_downsample": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "path", "made"),
    [
        ("", "model", (None, 256, False, False)),
        ("--tta --img_size 384 --mixed_precision float32", "model", ("float32", 384, True, False)),
        ("--mixed_precision bfloat16", "checkpoints/step_000000004", ("bfloat16", 256, False, False)),
        ("--trust_weights", "model", (None, 256, False, True)),
    ],
)
def test_the_model_is_loaded_as_asked(more, path, made, run_dir, monkeypatch):
    found = []

    def load(source, *words):
        found.extend((source.path.relative_to(run_dir.resolve()), words))
        raise UserError("this is enough")

    monkeypatch.setattr("prediction.ensemble.Predictor", load)
    with pytest.raises(UserError, match="this is enough"):
        predict.run(*predict.parse_options(words_of(run_dir, more)))
    assert found == [Path(path), made]


def test_the_grid_of_a_slide_is_that_of_the_settings(tmp_path):
    slide = make_slide(
        tmp_path, "a", label=None
    ).slide  # of 1000 × 700 pixels of 0.5 µm, and a 3rd and a 9th of that
    (tmp_path / WORK).mkdir()

    def grid(img_size: int, overlap: float, resolution: float | None, tissue_only: bool, level: int):
        opened = Opened(
            slide,
            tmp_path,
            PredictionSettings(
                "", img_size, overlap, 2, resolution, tissue_only, level, False, None, 0.5, 0.1
            ),
        )
        opened.discard()
        return opened.grid

    some, other = grid(128, 0.5, None, False, 0), grid(100, 0, 1.0, True, 1)
    assert (some.size, some.overlap, some.frame.width, some.tissue) == (128, 0.5, 1000, None)
    assert (other.size, other.overlap, other.frame.width, other.tissue.shape) == (100, 0, 500, (233, 333))
