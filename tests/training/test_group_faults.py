"""Faults of one rank of those that share a patch: the others, which wait for it in the step, end with it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.helpers.launch import run_python, start_python, wait_for
from training.resume import read_metrics
from utils.cli import EXIT_STOPPED

pytestmark = pytest.mark.mpi
PIXELS = "tests/helpers/toy_pixels.py"  # starts soon; ranks wait for each other's losses and gradients
LAYERS = "tests/helpers/toy_train.py"  # most layers wait for rows of the other rank
ENDS_WITHIN = 60  # seconds
# On rank 1 the logits are no numbers. The graph is the same on both ranks, by whose names Horovod knows operations.
NO_NUMBERS = """
import sys, train, training.trainer
from tests.helpers import toy_pixels
from utils.ranks.launcher import launcher_rank
make_loss, factor = training.trainer.make_loss, float("nan") if launcher_rank()[0] == 1 else 1.0
def of_one_strip(*words):
    loss = make_loss(*words)
    return lambda labels, logits: loss(labels, logits * factor)
training.trainer.make_loss = of_one_strip
toy_pixels.models.from_options.build_model = toy_pixels.one_pixel
sys.exit(train.main(sys.argv[1:]))
"""


def options(demo: Path, log_dir: Path, model: str = "deeplab", steps: int = 24) -> list[str | Path]:
    words = (
        "--data_sampler surf --img_size 128 --batch_size 1 --val_split 0.34 --validation_patches 2 "
        "--log_every 4 --checkpoint_every 4 --freeze_bn 0 --mixed_precision float32 "
        f"--ranks_per_patch 2 --model {model} --num_steps {steps}"
    )
    folders = ["--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir]
    return [*words.split(), *folders]


def start_and_signal(
    program: str, words: list[str | Path], step: int, number: signal.Signals
) -> tuple[int, str]:
    """Start a run, send the signal to rank 1 when the checkpoint of `step` is there. Return exit code and stderr."""
    process = start_python([program, *words], 2)
    wait_for((Path(words[-1]) / "checkpoints" / f"step_{step:09d}").exists, process)
    os.kill(rank_1(process, program), number)
    _, errors = process.communicate(timeout=ENDS_WITHIN)
    return process.returncode, errors


def rank_1(process: subprocess.Popen[str], program: str) -> int:
    """Return the process id of rank 1."""
    ranks = [c for c in psutil.Process(process.pid).children(recursive=True) if program in c.cmdline()]
    variables = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
    return next(c.pid for c in ranks if "1" in map(c.environ().get, variables))


def test_a_rank_that_is_killed_ends_the_others_of_its_group(demo, tmp_path):
    code, errors = start_and_signal(PIXELS, options(demo, tmp_path, steps=9999), 4, signal.SIGKILL)
    assert code not in (0, EXIT_STOPPED)
    assert "[rank 1] process" in errors
    assert "was killed" in errors


def test_a_loss_that_is_no_number_in_one_strip_ends_all_ranks_and_leaves_all_strips_of_the_batch(
    demo, tmp_path
):
    done = run_python(["-c", NO_NUMBERS, *options(demo, tmp_path)], 2)
    assert done.returncode == 1
    assert "failed: the loss is nan at step 1, that of rank" in done.stderr
    assert "Traceback" not in done.stderr
    strips = [np.load(tmp_path / f"bad_batch_step_1_rank_{rank}.npz") for rank in range(2)]
    assert [strip["images"].shape for strip in strips] == [(1, 64, 128, 3)] * 2
    assert [strip["labels"].shape for strip in strips] == [(1, 64, 128)] * 2
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_run_of_a_group_that_was_killed_and_stopped_ends_as_one_that_was_not(demo, tmp_path):
    log_dir, whole = tmp_path / "log", tmp_path / "whole"
    words = options(demo, log_dir, "effdetd0")
    code, errors = start_and_signal(LAYERS, words, 4, signal.SIGKILL)
    assert code not in (0, EXIT_STOPPED)
    assert "[rank 1] process" in errors
    code, errors = start_and_signal(LAYERS, words, 8, signal.SIGTERM)
    assert code == EXIT_STOPPED, errors
    for folder in (log_dir, whole):
        done = run_python([LAYERS, *options(demo, folder, "effdetd0")], 2)
        assert done.returncode == 0, done.stderr
    found, expected = read_metrics(log_dir), read_metrics(whole)
    assert [(row["split"], row["step"]) for row in found] == [(row["split"], row["step"]) for row in expected]
    for row, other in zip(found, expected):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
