"""Kills at random moments: sh run_tests.sh -m faults (half an hour; -k worker for one kind).

A run is killed twenty times, each start going on from where the last one ended. Every time: an end within a minute
with a non-zero code and the rank's name. Workers are killed while a run goes on, which starts them again. At last: the
result of a run without faults, no step lost or counted twice.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.launch import TIMEOUT, run_python, start_python, wait_for
from training.resume import read_metrics

pytestmark = [pytest.mark.faults, pytest.mark.mpi]
RANKS, SEEDS, ENDS_WITHIN = 2, range(20), 60
STEPS, EVERY = 720, 8


def command(demo: Path, log_dir: Path) -> list[str | Path]:
    words = (
        f"--data_sampler surf --img_size 128 --batch_size 2 --num_steps {STEPS} --val_split 0.34 "
        f"--validation_patches 4 --log_every {EVERY} --validate_every 48 --checkpoint_every {EVERY} "
        "--keep_checkpoints 3 --fpn_min_level 3 --freeze_bn 0"
    )
    return [
        *("tests/helpers/toy_train.py", *words.split()),
        *("--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir),
    ]


def rows(log_dir: Path) -> list[dict]:
    return read_metrics(log_dir) if (log_dir / "metrics.jsonl").exists() else []


def newest(log_dir: Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (log_dir / "checkpoints").glob("step_*")), default=0)


def descendants(process: subprocess.Popen, word: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if word in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return sorted(found, key=lambda child: child.pid)


def rank_of(process: psutil.Process) -> str | None:
    """As the launcher tells it to the process and its children."""
    environment = process.environ()
    return environment.get("OMPI_COMM_WORLD_RANK") or environment.get("PMI_RANK")


def wait_until_it_trains(process: subprocess.Popen, log_dir: Path, steps: int) -> None:
    """Until it has logged so many steps more than the checkpoint that it goes on from."""
    goal = newest(log_dir) + steps
    before = (log_dir / "metrics.jsonl").stat().st_mtime if (log_dir / "metrics.jsonl").exists() else 0.0
    # The rows after the checkpoint are taken off at the start, so the file changes before it has them again.
    wait_for(lambda: rows(log_dir) and (log_dir / "metrics.jsonl").stat().st_mtime != before, process)
    wait_for(lambda: rows(log_dir)[-1]["step"] >= goal, process)


def kill(victim: str, chance: random.Random, process: subprocess.Popen, log_dir: Path) -> set[str | None]:
    """The ranks whose processes were killed."""
    if victim == "job":  # while it writes a checkpoint
        step = newest(log_dir) + EVERY * chance.randint(2, 3)
        wait_for(lambda: list((log_dir / "checkpoints").glob(f".step_*{step}.partial")), process)
        time.sleep(chance.uniform(0, 0.06))
        targets = [*descendants(process, "toy_train"), psutil.Process(process.pid)]
    else:
        wait_until_it_trains(process, log_dir, EVERY * chance.randint(1, 3))
        time.sleep(chance.uniform(0, 0.3))
        targets = [chance.choice(descendants(process, "toy_train"))]
    ranks = {rank_of(target) for target in targets}
    for target in targets:
        os.kill(target.pid, signal.SIGKILL)
    return ranks


def assert_as_if_undisturbed(log_dir: Path, demo: Path, whole: Path) -> None:
    undisturbed = run_python(command(demo, whole), RANKS)
    assert undisturbed.returncode == 0, undisturbed.stderr
    found, expected = rows(log_dir), rows(whole)
    assert [(row["split"], row["step"]) for row in found] == [(row["split"], row["step"]) for row in expected]
    assert found[-1]["miou"] == pytest.approx(expected[-1]["miou"], abs=0.02)


def test_a_run_whose_workers_are_killed_goes_on(demo, tmp_path):
    chance, log_dir = random.Random("worker"), tmp_path / "log"
    process = start_python(command(demo, log_dir), RANKS)
    killed = 8  # fewer than what a rank puts up with
    for _ in range(killed):
        goal = max((row["step"] for row in rows(log_dir)), default=0) + EVERY * chance.randint(1, 6)
        wait_for(lambda goal=goal: rows(log_dir) and rows(log_dir)[-1]["step"] >= goal, process)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(chance.choice(descendants(process, "samplers.workers.worker")).pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert errors.count(": it is started again") == killed
    assert_as_if_undisturbed(log_dir, demo, tmp_path / "whole")


@pytest.mark.parametrize("victim", ["rank", "job"])
def test_killed_twenty_times_it_ends_as_if_undisturbed(victim, demo, tmp_path):
    log_dir = tmp_path / "log"
    words = command(demo, log_dir)
    for seed in SEEDS:
        chance = random.Random(f"{victim} {seed}")
        process = start_python(words, RANKS)
        ranks = kill(victim, chance, process, log_dir)
        killed = time.monotonic()
        _, errors = process.communicate(timeout=ENDS_WITHIN)
        seconds = time.monotonic() - killed
        print(
            f"{victim} {seed}: ended after {seconds:.1f} s with {process.returncode}, checkpoint {newest(log_dir)}"
        )
        assert process.returncode != 0, errors
        if victim != "job":
            assert f"[rank {ranks.pop()}]" in errors
        elif chance.random() < 0.5:
            path = max((log_dir / "checkpoints").glob("step_*"))
            data = next(path.glob("variables.data*"))
            data.write_bytes(data.read_bytes()[: chance.randrange(data.stat().st_size)])

    done = run_python(words, RANKS)
    assert done.returncode == 0, done.stderr
    assert_as_if_undisturbed(log_dir, demo, tmp_path / "whole")
