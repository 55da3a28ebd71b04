"""Starts programs for the tests, on one or several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600  # seconds; nothing may hang, and a loaded machine is slow


def launcher(ranks: int) -> list[str]:
    """The words before `python`; none for one process."""
    if ranks == 1:
        return []
    mpirun = Path(sys.executable).parent / "mpirun"
    return [str(mpirun), "-np", str(ranks), "--oversubscribe", "--bind-to", "none"]


def run_python(
    words: list[str | Path], ranks: int = 1, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` on `ranks` ranks; stdout and stderr are kept as text."""
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
    return subprocess.run(
        command, cwd=cwd or ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
