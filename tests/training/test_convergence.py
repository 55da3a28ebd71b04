"""From random weights to a useful model on two ranks: the runs of docs/results.md, one seed each.

Each takes minutes, so they are `slow`. A bar lies two standard deviations of three seeds below their mean, or, where
fewer seeds were run, 0.02 below the lowest of them. No time is asserted: `seconds` is in each run's metrics.jsonl.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.launch import run_python
from training.resume import read_metrics
from utils.demo.slides import make_demo

HOUR = 3600  # seconds; on two cores that other work shares


def validation_miou(log_dir: Path, folders: list[str | Path], options: str) -> float:
    words = ["train.py", *folders, *options.split(), "--log_dir", log_dir, "--seed", "0"]
    done = run_python(words, ranks=2, timeout=HOUR)
    assert done.returncode == 0, done.stderr
    return float(next(line["miou"] for line in reversed(read_metrics(log_dir)) if line["split"] == "val"))


@pytest.mark.mpi
@pytest.mark.slow
def test_the_demo_is_learnt(tmp_path):
    make_demo(tmp_path / "demo")
    folders = [
        "--slide_path", tmp_path / "demo/training/slides", "--label_path", tmp_path / "demo/training/masks",
        "--valid_slide_path", tmp_path / "demo/validation/slides",
        "--valid_label_path", tmp_path / "demo/validation/masks",
    ]  # fmt: skip
    options = "--data_sampler surf --img_size 256 --batch_size 4 --num_steps 640 --freeze_bn 0.25"
    assert validation_miou(tmp_path / "log", folders, f"{options} --validation_patches 160") >= 0.9


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bar"),
    [
        ("--img_size 256 --batch_size 2 --num_steps 3400 --learning_rate 2e-3", 0.925),
        ("--img_size 256 --batch_size 2 --num_steps 3400 --learning_rate 2e-3 --data_sampler radboud", 0.90),
        ("--img_size 512 --batch_size 1 --num_steps 850 --learning_rate 2e-3 --freeze_bn 0.75", 0.85),
        ("--img_size 256 --batch_size 2 --num_steps 1600 --learning_rate 7e-4 --model effdetd4", 0.85),
        ("--img_size 128 --batch_size 4 --num_steps 4000 --learning_rate 1e-3 --model deeplab", 0.85),
    ],
    ids=["d0-surf", "d0-radboud", "d0-512", "d4", "deeplab"],
)
def test_slides_with_real_texture_are_learnt(options, bar, shared_data, tmp_path):
    slides = shared_data / "camelyon16_like"
    folders = ["--slide_path", slides / "slides", "--label_path", slides / "masks", "--val_split", "0.34"]
    usual = "--data_sampler surf --batch_tumor_ratio 0.5 --freeze_bn 0.9 --fpn_min_level 3"
    validation = "--validation_patches 200 --validate_every 100000"
    assert validation_miou(tmp_path / "log", folders, f"{usual} {validation} {options}") >= bar
