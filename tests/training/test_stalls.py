"""Ranks that hang in a run: one is stopped by a signal, as if its node hung."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.launch import run_python, start_python, wait_for
from tests.training.test_group_faults import rank_1
from training.resume import read_metrics
from utils.cli import EXIT_STALLED

pytestmark = pytest.mark.mpi
PROGRAM = "tests/helpers/toy_pixels.py"  # starts soon
LIMIT = 12  # seconds; a rank is named after half of it


def options(demo: Path, log_dir: Path, steps: int) -> list[str | Path]:
    words = (
        f"--data_sampler surf --img_size 128 --batch_size 1 --val_split 0.34 --validation_patches 2 --log_every 8 "
        f"--checkpoint_every 8 --freeze_bn 0 --mixed_precision float32 --num_steps {steps} "
        f"--stall_limit {LIMIT / 60}"
    )
    folders = ["--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir]
    return [*words.split(), *folders]


def test_a_rank_that_hangs_is_named_and_the_run_ends_with_a_checkpoint_of_the_last_step(demo, tmp_path):
    process = start_python([PROGRAM, *options(demo, tmp_path, 99999)], 2)
    wait_for((tmp_path / "checkpoints" / "step_000000008").exists, process)
    os.kill(rank_1(process, PROGRAM), signal.SIGSTOP)
    _, errors = process.communicate(timeout=10 * LIMIT)
    print(errors)
    assert process.returncode == EXIT_STALLED
