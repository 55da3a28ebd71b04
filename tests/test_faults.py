"""Kills at random moments: sh run_tests.sh -m faults (an hour; -k "rank and 3" for one of them).

Every time: an end within a minute with a non-zero code, and the next start goes on to the result of a run
without faults, no step lost or counted twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import run_python, start_python, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.mpi]
RANKS, SEEDS, ENDS_WITHIN = 2, range(20), 60


VICTIMS = ("rank", "worker", "job")


def command(demo: Path, log_dir: Path) -> list[str | Path]:
    words = (
        "--data_sampler surf --img_size 128 --batch_size 2 --num_steps 96 --val_split 0.34 --validation_patches 4 "
        "--log_every 8 --validate_every 48 --checkpoint_every 8 --fpn_min_level 3 --freeze_bn 0"
    )
    return [
        *("tests/toy_train.py", *words.split()),
        *("--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir),
    ]


def rows(log_dir: Path) -> list[dict]:
    path = log_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Metrics of a run without faults."""
    log_dir = tmp_path_factory.mktemp("whole") / "log"
    done = run_python(command(demo, log_dir), RANKS)
    assert done.returncode == 0, done.stderr
    return rows(log_dir)


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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_the_next_start_goes_on(victim, seed, whole, demo, tmp_path):
    expected = whole
    chance = random.Random(f"{victim} {seed}")
    log_dir = tmp_path / "log"
    words = command(demo, log_dir)
    process = start_python(words, RANKS)
    if victim == "job":  # while it writes a checkpoint, one of the later ones
        number = chance.randrange(1, 11)
        wait_for(lambda: list((log_dir / "checkpoints").glob(f"tmp_*{8 * (number + 1)}")), process)
        time.sleep(chance.uniform(0, 0.06))
        targets = [*descendants(process, "train.py"), psutil.Process(process.pid)]
    else:
        # After the last row it exports; a sampler's worker is not missed any more then.
        number = chance.randrange(len(expected) if victim == "rank" else 5) + 1
        wait_for(lambda: len(rows(log_dir)) >= number, process)
        time.sleep(chance.uniform(0, 0.5))
        word = {"rank": "train.py", "worker": "samplers.worker"}[victim]
        targets = [chance.choice(descendants(process, word))]
    ranks = {rank_of(target) for target in targets}
    killed = time.monotonic()
    for target in targets:
        os.kill(target.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=ENDS_WITHIN)
    assert process.returncode != 0, errors
    assert time.monotonic() - killed < ENDS_WITHIN
    if victim != "job":
        assert f"[rank {ranks.pop()}]" in errors
    checkpoints = sorted((log_dir / "checkpoints").glob("step_*"))
    if victim == "job" and chance.random() < 0.5 and len(checkpoints) > 1:
        data = next(checkpoints[-1].glob("variables.data*"))
        data.write_bytes(data.read_bytes()[: chance.randrange(data.stat().st_size)])

    done = run_python(words, RANKS)
    assert done.returncode == 0, done.stderr
    found = rows(log_dir)
    assert [(row["split"], row["step"]) for row in found] == [(row["split"], row["step"]) for row in expected]
    assert found[-1]["miou"] == pytest.approx(expected[-1]["miou"], abs=0.02)
