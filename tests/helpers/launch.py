"""Starts programs for the tests, on one or several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# As utils.startup sets it for ranks that share a patch; yielding, for there may be more ranks than cores.
QUICK_EXCHANGES = {
    "HOROVOD_CYCLE_TIME": "1",
    "HOROVOD_CACHE_CAPACITY": "16384",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
TIMEOUT = 600  # seconds; nothing may hang, and a loaded machine is slow


def launcher(ranks: int) -> list[str]:
    """Return the words that a command line has before `python`: none for one process."""
    if ranks == 1:
        return []
    hydra = Path(sys.executable).parent / "mpiexec.hydra"
    if hydra.exists():  # MPI=intel sh run_tests.sh
        return [str(hydra), "-np", str(ranks)]
    mpirun = Path(sys.executable).parent / "mpirun"
    return [str(mpirun), "-np", str(ranks), "--oversubscribe", "--bind-to", "none"]


def run_python(
    words: list[str | Path],
    ranks: int = 1,
    cwd: Path | None = None,
    timeout: float = TIMEOUT,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` on `ranks` ranks for at most `timeout` seconds. Return exit code and output."""
    process = start_python(words, ranks, cwd, **environment)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start_python(
    words: list[str | Path],
    ranks: int = 1,
    cwd: Path | None = None,
    start_new_session: bool = False,
    **environment: str,
) -> subprocess.Popen[str]:
    """Start what `run_python` runs without waiting for its end, in a session of its own if asked."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_USE_LEGACY_KERAS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **environment,
    }
    command = [*launcher(ranks), sys.executable, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=cwd or ROOT,
        env=env,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=start_new_session,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until `condition()` is true. The test fails if the process ends before, or after TIMEOUT."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
