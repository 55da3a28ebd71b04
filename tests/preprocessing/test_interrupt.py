"""Ctrl-C at any moment: exit code 130 and one line, whatever the program and its workers are doing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.launch import start_python, wait_for
from utils.demo.slides import make_camelyon17_demo

PROGRAM = ["-m", "CAMELYON17_PREPROCESSING.preprocess"]


@pytest.fixture(scope="module")
def demo17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_camelyon17_demo(
        tmp_path_factory.mktemp("demo17"), patients=2, size=2048
    )  # takes some seconds


def workers(pid: int) -> int:
    """Return how many processes of multiprocessing the process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


# While it imports; while its first and second worker are being started, and a little later.
MOMENTS = [("imports", 0.0), ("imports", 0.3)]
MOMENTS += [(f"{count} workers", late) for count in (1, 2) for late in (0.0, 0.02, 0.1, 0.5)]


@pytest.mark.parametrize(("moment", "late"), MOMENTS)
def test_ctrl_c_is_quiet_at_any_moment(demo17, tmp_path, moment, late):
    out = ["--save_positive_path", str(tmp_path / "positive"), "--patch_size", "128", "--num_threads", "2"]
    # A shell that runs in the background has it ignored, and so would what is started here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start_python([*PROGRAM, "--root", str(demo17), *out], start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    if moment == "imports":
        wait_for(lambda: "numpy" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    else:
        wait_for(lambda: workers(process.pid) >= int(moment[0]), process)
    time.sleep(late)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert "Error" not in errors
