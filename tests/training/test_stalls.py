"""Ranks that hang in a run: one is stopped by a signal, as if its node hung."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.launch import TIMEOUT, run_python, start_python, wait_for
from tests.training.test_group_faults import rank_1
from training.checkpoint import VARIABLES, checkpoint_path, latest_checkpoint, read_state
from training.resume import read_metrics
from utils.cli import EXIT_STALLED

pytestmark = pytest.mark.mpi
PROGRAM = "tests/helpers/toy_pixels.py"  # starts soon
SILENT = f"rank 1 on {platform.node()} has not answered for"


def options(demo: Path, log_dir: Path, limit: float = 1800) -> list[str | Path]:
    """`limit` in seconds. A rank is named after half of it, or after a minute."""
    words = (
        f"--data_sampler surf --img_size 128 --batch_size 1 --val_split 0.34 --validation_patches 2 --log_every 32 "
        f"--freeze_bn 0 --mixed_precision float32 --num_steps 1024 --validate_every 1024 "
        f"--stall_limit {limit / 60}"
    )
    folders = ["--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir]
    return [PROGRAM, *words.split(), *folders]


def stop_rank_1(process: subprocess.Popen[str], log_dir: Path, step: int) -> int:
    """Stop rank 1, as if its node hung, when `step` has been logged. Return its process id."""
    file = log_dir / "metrics.jsonl"
    wait_for(lambda: file.exists() and [row for row in read_metrics(log_dir) if row["step"] >= step], process)
    found = rank_1(process, PROGRAM)
    os.kill(found, signal.SIGSTOP)
    return found


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return what the run says on stderr up to the line with these words."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def end_with_checkpoint(process: subprocess.Popen[str], log_dir: Path) -> Path:
    """Wait for the end of a run whose rank 1 is stopped. Return the checkpoint that it ended with."""
    errors = read_until(process, f"[rank 0] failed: {SILENT}")
    assert f"warning: {SILENT}" in errors
    assert process.wait(TIMEOUT) == EXIT_STALLED
    path, bad = latest_checkpoint(log_dir / "checkpoints")
    assert bad == []
    assert path is not None
    assert f"checkpoint of step {read_state(path)['step']} is in {path.parent}. The same command" in errors
    return path


def weights(path: Path) -> np.ndarray:
    """Return the variables of the model and the optimizer's moments in one vector."""
    reader = tf.train.load_checkpoint(str(path / VARIABLES))
    shapes = reader.get_variable_to_shape_map()
    names = [name for name in sorted(shapes) if shapes[name] and "VARIABLE_VALUE" in name]
    assert len(names) > 20
    return np.concatenate([reader.get_tensor(name).ravel() for name in names])


def test_a_rank_that_hangs_is_named_and_the_run_ends_with_a_checkpoint_of_the_last_step(demo, tmp_path):
    process = start_python(options(demo, tmp_path, limit=6), 2)
    stop_rank_1(process, tmp_path, 32)
    state = read_state(end_with_checkpoint(process, tmp_path))
    assert state["step"] >= 32
    assert [rank["next_batch"] for rank in state["ranks"]] == [state["step"] // 2] * 2


@pytest.mark.slow
def test_a_run_whose_rank_hung_and_went_on_and_hung_again_loses_no_step(demo, tmp_path):
    hung, whole = tmp_path / "hung", tmp_path / "whole"
    process = start_python(options(demo, hung, limit=24), 2)
    stopped = stop_rank_1(process, hung, 32)
    read_until(process, f"warning: {SILENT}")
    os.kill(stopped, signal.SIGCONT)
    read_until(process, "the ranks go on after")
    stop_rank_1(process, hung, 128)
    path = end_with_checkpoint(process, hung)
    rescued = shutil.copytree(path, tmp_path / path.name)
    done = run_python(options(demo, hung), 2)
    assert done.returncode == 0, done.stderr

    done = run_python([*options(demo, whole), "--checkpoint_every", "2", "--keep_checkpoints", "999"], 2)
    assert done.returncode == 0, done.stderr
    step = read_state(rescued)["step"]
    found = weights(rescued)
    before, expected, after = (weights(checkpoint_path(whole / "checkpoints", step + n)) for n in (-2, 0, 2))
    update = min(np.linalg.norm(expected - before), np.linalg.norm(after - expected))
    assert np.linalg.norm(found - expected) < 0.1 * update  # that is rounding
    rows, all_rows = read_metrics(hung), read_metrics(whole)
    assert [(row["split"], row["step"]) for row in rows] == [(row["split"], row["step"]) for row in all_rows]
    for row, other in zip(rows[-2:], all_rows[-2:]):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
