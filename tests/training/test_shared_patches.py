"""Runs on ranks that share their patches have the patches, scores, pictures and state of runs with whole patches."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from tests.helpers.launch import TIMEOUT, run_python, start_python, wait_for
from tests.helpers.lesion_slides import make_slide
from tests.helpers.tiny_slides import overwrite_tile
from training.resume import read_metrics
from utils.cli import EXIT_STOPPED

pytestmark = pytest.mark.mpi
TOY = "tests/helpers/toy_pixels.py"
CLOCK = ("images_per_second", "sampler_wait", "seconds")


def command(data: Path, log_dir: Path, *others: str) -> list[str | Path]:
    words = (
        "--model deeplab --img_size 192 --batch_size 3 --num_steps 120 --val_split 0.34 --validation_patches 6 "
        "--log_every 30 --validate_every 60 --checkpoint_every 12 --keep_checkpoints 9 --freeze_bn 0 --hard_mining "
        "--hard_mining_threshold 0.4 --class_weights balanced --batch_tumor_ratio 0.6 --learning_rate 0.01 "
        "--deterministic --max_bad_slides 1 --mixed_precision float32"
    )
    folders = ["--slide_path", data / "slides", "--label_path", data / "masks", "--log_dir", log_dir]
    return [TOY, *words.split(), *folders, *others]


def run(words: list[str | Path], ranks: int) -> str:
    done = run_python(words, ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_metrics(log_dir: Path, expected: Path) -> None:
    found, wanted = read_metrics(log_dir), read_metrics(expected)
    assert [(row["split"], row["step"]) for row in found] == [(row["split"], row["step"]) for row in wanted]
    for row, other in zip(found, wanted):
        assert row.keys() == other.keys()
        for name in row.keys() - {*CLOCK, "slides"}:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
        of_slides = ({name: v["pixels"] for name, v in r.get("slides", {}).items()} for r in (row, other))
        assert next(of_slides) == next(of_slides)


def state(log_dir: Path, step: int) -> dict:
    return json.loads((log_dir / "checkpoints" / f"step_{step:09d}" / "state.json").read_text())


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log_dir of a run on 2 ranks with whole patches."""
    log_dir = tmp_path_factory.mktemp("whole") / "log"
    run(command(demo, log_dir), 2)
    return log_dir


@pytest.fixture(scope="module")
def stopped(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log_dir of a run on 4 ranks, two to a patch, of which one got a signal after a checkpoint."""
    log_dir = tmp_path_factory.mktemp("stopped") / "log"
    process = start_python(command(demo, log_dir, "--ranks_per_patch", "2"), 4)
    wait_for((log_dir / "checkpoints" / "step_000000012").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    [child for child in children if TOY in child.cmdline()][-1].send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == EXIT_STOPPED, errors
    return log_dir


@pytest.mark.parametrize(("ranks", "words"), [(4, ["--ranks_per_patch", "2"]), (2, [])])
def test_stopped_and_gone_on_with_any_number_of_ranks_per_patch_it_is_the_run_with_whole_patches(
    whole: Path, stopped: Path, demo: Path, tmp_path: Path, ranks: int, words: list[str]
) -> None:
    log_dir = tmp_path / "log"
    shutil.copytree(stopped, log_dir)
    assert "differs" not in run(command(demo, log_dir, *words), ranks)
    assert_same_metrics(log_dir, whole)
    found, expected = state(log_dir, 120), state(whole, 120)
    assert len(found["ranks"]) == 2
    assert found["ranks"] == expected["ranks"]
    weights = [json.loads((folder / "labels.json").read_text())["weights"] for folder in (log_dir, whole)]
    assert weights[0] == weights[1]
    assert weights[0] != [1, 1]
    panels = sorted(path.relative_to(whole) for path in (whole / "pictures").rglob("*.png"))
    assert panels
    for path in panels:
        first, second = (cv2.imread(str(folder / path)) for folder in (log_dir, whole))
        assert first.shape == second.shape
        assert (np.abs(first.astype(int) - second) > 8).mean() < 0.02


def test_tiles_that_break_are_left_out_by_all_ranks_of_a_group_and_none_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training with hard mining, where batch norm is computed anew, and in validations."""
    monkeypatch.setenv("TOY_NORM", "1")
    data, log_dir = tmp_path / "data", tmp_path / "log"
    for name in ("slides", "masks"):
        (data / name).mkdir(parents=True)
    for i in range(6):  # two for each group: without the one that breaks there are lesions still
        pair = make_slide(data / "slides", f"tumor_{i}")
        shutil.move(str(pair.label), data / "masks")
    process = start_python(command(data, log_dir, "--ranks_per_patch", "2", "--freeze_bn", "0.5"), 4)
    wait_for((log_dir / "checkpoints" / "step_000000012").exists, process)
    splits = json.loads((log_dir / "splits.json").read_text())
    slide, other = (Path(splits[part][0]["slide"]) for part in ("train", "val"))
    for number in range(16):  # rows of tiles of 64 pixels, less than a strip
        overwrite_tile(slide, 5 * 16 + number, b"\0")
        for row in (2, 4, 6):  # of the few patches of a validation, some have one of these
            overwrite_tile(other, row * 16 + number, b"\0")
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert read_metrics(log_dir)[-1]["step"] == 120
    assert [row["bad_slides"] for row in read_metrics(log_dir) if row["split"] == "train"][-1] == 1
    validated = [row for row in read_metrics(log_dir) if row["split"] == "val"]
    assert [row["bad_slides"] for row in validated] == [1, 1]
    of_groups = [set(mine["dropped"]) for mine in state(log_dir, 120)["ranks"]]
    assert {slide.stem} in of_groups
    assert errors.count(f"] warning: bad slide, left out from now on: {slide.stem}") == 2 * sum(
        map(bool, of_groups)
    )


def test_ranks_that_cannot_be_divided_into_groups_are_refused(tmp_path: Path) -> None:
    done = run_python(["train.py", "--ranks_per_patch", "2", "--slide_path", tmp_path], ranks=3)
    assert done.returncode == 2
    assert "--ranks_per_patch 2 does not divide the number of ranks, which is 3: start 2 or 4" in done.stderr
