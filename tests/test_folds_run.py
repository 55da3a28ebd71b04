"""A whole cross-validation with a small network; killed in the middle and started again it has the same table."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.launch import run_python
from utils.demo.slides import make_demo

pytestmark = pytest.mark.slow
TRAIN = (
    "--data_sampler surf --img_size 128 --batch_size 2 --num_steps 12 --validation_patches 4 --validate_every 6 "
    "--fpn_min_level 3 --deterministic --folds 2"
)


def train(data: Path, log_dir: Path, fold: int, **environment: str) -> int:
    words = [
        "tests/helpers/toy_train.py",
        *TRAIN.split(),
        "--fold",
        str(fold),
        "--log_dir",
        log_dir / f"fold_{fold}",
    ]
    folders = ["--slide_path", data / "slides", "--label_path", data / "masks"]
    return run_python([*words, *folders], **environment).returncode


def predict(log_dir: Path, fold: int) -> int:
    folder = log_dir / f"fold_{fold}"
    words = ["--slide_path", folder / "splits.json", "--output", folder / "predictions"]
    return run_python(["predict.py", "--model_path", folder, *words]).returncode


def test_the_same_table_after_a_kill(tmp_path):
    data = make_demo(tmp_path / "demo", train=4, val=0, size=1024) / "training"
    tables = []
    for name, killed in (("whole", False), ("killed", True)):
        log_dir = tmp_path / name
        for fold in (1, 2):
            if killed and fold == 2:
                assert train(data, log_dir, fold, TOY_KILLED_AT="6") == -signal.SIGKILL
                assert run_python(["-m", "evaluation.folds", "--log_dir", log_dir]).returncode == 2
            assert train(data, log_dir, fold) == 0
            assert predict(log_dir, fold) == 0
        done = run_python(["-m", "evaluation.folds", "--log_dir", log_dir, "--bootstrap", "50"])
        assert done.returncode == 0, done.stderr
        tables.append((log_dir / "folds.json").read_text())
        assert "| Dice of tumour" in done.stdout
    assert tables[0] == tables[1]
    slides = [line.split(",")[0] for line in (tmp_path / "whole/folds.csv").read_text().splitlines()[1:]]
    assert sorted(slides) == [f"tumor_00{number}" for number in (1, 2, 3, 4)]
