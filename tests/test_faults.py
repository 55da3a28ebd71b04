"""Faults at random moments: FAULT_MOMENTS=20 sh run_tests.sh -m faults (hours), without it 2 of each kind.

Faults that end a run: each start goes on from where the last one ended, and every end comes within a minute, with a
non-zero code and, of a rank, its name. Faults that a run survives come while it goes on. At last both have the rows of
a run without faults: no step is lost or counted twice. The moments are functions of the fault and its number.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.launch import TIMEOUT, run_python, start_python, wait_for
from training.checkpoint import latest_checkpoint
from training.resume import read_metrics
from utils.cli import EXIT_STALLED
from utils.demo.slides import make_demo

pytestmark = [pytest.mark.faults, pytest.mark.mpi]
MOMENTS = int(os.environ.get("FAULT_MOMENTS", "2"))
AT_ONCE = 4  # faults in a run that survives them; a rank starts no more than ten workers again
RANKS, ENDS_WITHIN = 2, 60
EVERY, VALIDATE = 8, 48
STEPS = VALIDATE * (MOMENTS + 1)
SHORT = 2 * VALIDATE + 48 * AT_ONCE  # steps of a run that survives


def command(data: Path, log_dir: Path, steps: int) -> list[str | Path]:
    words = (
        f"--data_sampler surf --img_size 128 --batch_size 2 --num_steps {steps} --val_split 0.34 "
        f"--validation_patches 4 --log_every {EVERY} --validate_every {VALIDATE} --checkpoint_every {EVERY} "
        "--keep_checkpoints 3 --fpn_min_level 3 --freeze_bn 0 --max_bad_slides 9"
    )
    return [
        *("tests/helpers/toy_train.py", *words.split()),
        *("--slide_path", data / "slides", "--label_path", data / "masks", "--log_dir", log_dir),
    ]


@pytest.fixture(scope="module")
def undisturbed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict]]:
    """Returns the rows of a run of so many steps without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def rows_of(steps: int) -> list[dict]:
        log_dir = folder / str(steps)
        if not log_dir.exists():
            done = run_python(command(demo, log_dir, steps), RANKS)
            assert done.returncode == 0, done.stderr
        return rows(log_dir)

    return rows_of


def rows(log_dir: Path) -> list[dict]:
    return read_metrics(log_dir) if (log_dir / "metrics.jsonl").exists() else []


def steps_of(found: list[dict]) -> list[tuple[str, int]]:
    return [(row["split"], row["step"]) for row in found]


def last_step(log_dir: Path) -> int:
    return max((row["step"] for row in rows(log_dir)), default=0)


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


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    return descendants(process, "toy_train")


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
    wait_for(lambda: last_step(log_dir) >= goal, process)


def wait_until_it_validates(process: subprocess.Popen, log_dir: Path) -> None:
    """Until the next checkpoint is there that is written before its validation."""
    step = VALIDATE * (max(newest(log_dir), last_step(log_dir)) // VALIDATE + 1)
    wait_for((log_dir / "checkpoints" / f"step_{step:09d}").exists, process)


def wait_until_it_writes(chance: random.Random, process: subprocess.Popen, log_dir: Path) -> None:
    """Until it writes the checkpoint after the next one or two."""
    step = newest(log_dir) + EVERY * chance.randint(2, 3)
    wait_for(lambda: list((log_dir / "checkpoints").glob(f".step_*{step}.partial")), process)


def disturb(fault: str, chance: random.Random, process: subprocess.Popen, log_dir: Path) -> set[str | None]:
    """Wait for the moment and do it. Return the ranks that it was done to."""
    if fault == "job, in a checkpoint":
        wait_until_it_writes(chance, process, log_dir)
        time.sleep(chance.uniform(0, 0.06))
    elif fault == "rank, in a validation":
        wait_until_it_validates(process, log_dir)
        time.sleep(chance.uniform(0, 0.2))
    else:
        wait_until_it_trains(process, log_dir, EVERY * chance.randint(1, 3))
        time.sleep(chance.uniform(0, 0.3))
    if fault.startswith("job"):
        targets = [*ranks_of(process), psutil.Process(process.pid)]
    elif fault == "launcher":
        targets = [psutil.Process(process.pid)]
    elif fault == "stopped rank":
        targets = [ranks_of(process)[1]]
    else:
        targets = [chance.choice(ranks_of(process))]
    ranks = {rank_of(target) for target in targets}
    for target in targets:
        os.kill(target.pid, signal.SIGSTOP if fault == "stopped rank" else signal.SIGKILL)
    return ranks


ENDING = ["rank", "rank, in a validation", "launcher", "job, in a checkpoint", "stopped rank"]


@pytest.mark.parametrize("fault", ENDING)
def test_a_run_that_faults_end_again_and_again_ends_as_if_undisturbed(fault, demo, tmp_path, undisturbed):
    log_dir = tmp_path / "log"
    words = command(demo, log_dir, STEPS)
    limit = ["--stall_limit", "0.2"] if fault == "stopped rank" else []
    for moment in range(MOMENTS):
        chance = random.Random(f"{fault} {moment}")
        process = start_python([*words, *limit], RANKS)
        ranks = disturb(fault, chance, process, log_dir)
        disturbed = time.monotonic()
        processes = ranks_of(process) if fault == "launcher" else []
        _, errors = process.communicate(timeout=ENDS_WITHIN)
        _, left = psutil.wait_procs(processes, timeout=ENDS_WITHIN)
        seconds = time.monotonic() - disturbed
        print(f"{fault} {moment}: {process.returncode} after {seconds:.1f} s, checkpoint {newest(log_dir)}")
        assert not left, errors
        assert process.returncode != 0, errors
        assert latest_checkpoint(log_dir / "checkpoints")[0] is not None
        if fault == "stopped rank":
            assert process.returncode == EXIT_STALLED, errors
            assert newest(log_dir) >= last_step(log_dir)
        if fault.startswith("rank"):
            assert f"[rank {ranks.pop()}]" in errors
        elif fault.startswith("job") and chance.random() < 0.5:
            path = max((log_dir / "checkpoints").glob("step_*"))
            data = next(path.glob("variables.data*"))
            data.write_bytes(data.read_bytes()[: chance.randrange(data.stat().st_size)])

    done = run_python(words, RANKS)
    assert done.returncode == 0, done.stderr
    found, expected = rows(log_dir), undisturbed(STEPS)
    assert steps_of(found) == steps_of(expected)
    assert found[-1]["miou"] == pytest.approx(expected[-1]["miou"], abs=0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def survive(fault: str, chance: random.Random, process: subprocess.Popen, log_dir: Path, data: Path) -> None:
    """Wait for the moment and do what the run is to survive."""
    if fault == "worker, in a validation":
        wait_until_it_validates(process, log_dir)
        time.sleep(chance.uniform(0, 0.2))
    else:
        goal = last_step(log_dir) + EVERY * chance.randint(1, 5)
        wait_for(lambda: last_step(log_dir) >= goal, process)
        time.sleep(chance.uniform(0, 0.3))
    if fault.startswith("worker"):
        os.kill(chance.choice(descendants(process, "samplers.workers.worker")).pid, signal.SIGKILL)
    elif fault == "slide":  # half of it is gone
        path = chance.choice([p for p in sorted((data / "slides").iterdir()) if p.stat().st_size > 1 << 16])
        os.truncate(path, path.stat().st_size // 2)
    elif fault == "pause":
        rank = chance.choice(ranks_of(process))
        os.kill(rank.pid, signal.SIGSTOP)
        time.sleep(chance.uniform(1, 4))
        os.kill(rank.pid, signal.SIGCONT)
    else:
        filler = log_dir.parent / "filler"
        with contextlib.suppress(OSError):  # the run took what was left
            filler.write_bytes(bytes(psutil.disk_usage(str(log_dir)).free))
        time.sleep(chance.uniform(0, 3))
        filler.unlink()


@pytest.mark.parametrize("fault", ["worker", "worker, in a validation", "pause", "slide", "disk"])
def test_a_run_survives(fault, demo, tmp_path, undisturbed, request):
    data, folder = demo, tmp_path
    if fault == "disk":
        folder = request.getfixturevalue("small_disk")
    for first in range(0, MOMENTS, AT_ONCE):
        log_dir = folder / "log"
        if fault == "slide":  # a run does not begin with slides that are broken
            shutil.rmtree(tmp_path / "demo", ignore_errors=True)
            data = make_demo(tmp_path / "demo", train=12, val=0, size=1536) / "training"
        process = start_python(command(data, log_dir, SHORT), RANKS)
        moments = range(first, min(first + AT_ONCE, MOMENTS))
        for moment in moments:
            survive(fault, random.Random(f"{fault} {moment}"), process, log_dir, data)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        if fault.startswith("worker"):
            assert errors.count(": it is started again") == len(moments)
        found, expected = rows(log_dir), undisturbed(SHORT)
        assert steps_of(found) == steps_of(expected)
        if fault not in ("slide", "disk"):
            assert found[-1]["miou"] == pytest.approx(expected[-1]["miou"], abs=0.02)
        shutil.rmtree(log_dir)
