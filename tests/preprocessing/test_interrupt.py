"""Ctrl-C at any moment: one line, whatever the preprocessing and its workers are doing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.interrupting import imports, interrupt
from utils.demo.camelyon17 import make_camelyon17_demo

PROGRAM = ["-m", "CAMELYON17_PREPROCESSING.preprocess", "--patch_size", "128", "--num_threads", "2"]
QUIET = 130, ["interrupted: the same command goes on"]


@pytest.fixture(scope="module")
def demo17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides that take some seconds."""
    return make_camelyon17_demo(tmp_path_factory.mktemp("demo17"), patients=2, size=2048)


def has_workers(process: subprocess.Popen[str], count: int) -> bool:
    """Return whether the program has started this many processes of multiprocessing."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    return sum(b"spawn_main" in command for command in commands) >= count


@pytest.mark.parametrize("late", [0, 0.3])
def test_ctrl_c_is_quiet_while_it_imports(late, demo17, tmp_path):
    command = [*PROGRAM, "--root", demo17, "--save_positive_path", tmp_path / "positive"]
    assert interrupt(command, imports, late) == QUIET


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("late", [0, 0.02, 0.1, 0.5])
def test_ctrl_c_is_quiet_while_workers_start_and_work(count, late, demo17, tmp_path):
    command = [*PROGRAM, "--root", demo17, "--save_positive_path", tmp_path / "positive"]
    assert interrupt(command, lambda process: has_workers(process, count), late) == QUIET


@pytest.mark.mpi
def test_no_rank_calls_itself_killed_when_the_launcher_is_interrupted(demo17, tmp_path):
    command = [
        *PROGRAM,
        "--root",
        demo17,
        "--save_positive_path",
        tmp_path / "positive",
        "--save_png",
        "--save_neg",
    ]
    records = tmp_path / "positive" / "slides"
    _, errors = interrupt(command, lambda _: records.exists(), 0.7, ranks=2)
    assert len(list(records.glob("*.json"))) < 8  # it was not finished before
    assert not [line for line in errors if "killed" in line or "Traceback" in line]
