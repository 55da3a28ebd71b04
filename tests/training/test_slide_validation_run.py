"""Runs of train.py with --validate_slides: the training is the same, on several ranks and after a kill as well."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.helpers.launch import run_python
from tests.training.test_resume import variables
from training.resume import read_metrics

TOY = "tests/helpers/toy_train.py"
SLIDES = ["--validate_slides", "9", "--validate_slides_every", "4", "--best_by", "dice"]


def command(demo: Path, log_dir: Path, *more: str) -> list[str | Path]:
    words = (
        "--data_sampler surf --img_size 128 --batch_size 2 --num_steps 12 --val_split 0.34 --validation_patches 4 "
        "--log_every 4 --validate_every 12 --checkpoint_every 4 --keep_checkpoints 9 --fpn_min_level 3 --deterministic"
    )
    return [
        *(TOY, *words.split(), *more),
        *("--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir),
    ]


def rows_of(log_dir: Path, split: str) -> list[dict]:
    return [row for row in read_metrics(log_dir) if row["split"] == split]


def without_times(rows: list[dict]) -> list[dict]:
    left_out = ("seconds", "images_per_second", "sampler_wait")
    return [{key: value for key, value in row.items() if key not in left_out} for row in rows]


@pytest.fixture(scope="module")
def plain(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    log_dir = tmp_path_factory.mktemp("plain") / "log"
    done = run_python(command(demo, log_dir))
    assert done.returncode == 0, done.stderr
    return log_dir


def test_training_is_the_same_bits_with_whole_slides_also_after_a_kill_in_them(
    plain, demo, tmp_path, monkeypatch
):
    log_dir = tmp_path / "log"
    monkeypatch.setenv("TOY_KILLED_AT", "8")  # when the scores of the slides are to come into the checkpoint
    assert run_python(command(demo, log_dir, *SLIDES)).returncode == -signal.SIGKILL
    assert [row["step"] for row in rows_of(log_dir, "slides")] == [4, 8]
    state = json.loads((log_dir / "checkpoints/step_000000008/state.json").read_text())
    assert state["slides_due"]
    monkeypatch.delenv("TOY_KILLED_AT")
    done = run_python(command(demo, log_dir, *SLIDES))
    assert done.returncode == 0, done.stderr

    assert [row["step"] for row in rows_of(log_dir, "slides")] == [4, 8, 12]
    expected, found = variables(plain, 12), variables(log_dir, 12)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name].tobytes() != found[name].tobytes()] == []
    for split in ("train", "val"):
        assert without_times(rows_of(log_dir, split)) == without_times(rows_of(plain, split))
    dice = {row["step"]: row["slide_dice"] for row in rows_of(log_dir, "slides")}
    state = json.loads((log_dir / "checkpoints/step_000000012/state.json").read_text())
    assert state["best"] == [max(dice.values()), max(dice, key=lambda step: (dice[step], -step))]
    page = (log_dir / "report.html").read_text()
    assert page.count('class="slide"') == 1
    assert "<h2>Whole slides</h2>" in page
    assert list((log_dir / "tensorboard/slides").glob("events*"))


@pytest.mark.mpi
def test_two_ranks_predict_the_slides_together(demo, tmp_path):
    done = run_python(command(demo, tmp_path / "log", *SLIDES), ranks=2)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "log", "slides")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all(len(row["slides"]) == 1 and not row["left_out"] for row in rows)
    assert "whole slides: every 4 steps" in done.stdout


def test_best_by_whole_slides_needs_them(demo, tmp_path):
    done = run_python(command(demo, tmp_path, "--best_by", "froc"))
    assert done.returncode == 2
    assert "--best_by froc is a score of whole slides: add --validate_slides" in done.stderr
