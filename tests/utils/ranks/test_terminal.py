"""Whether the progress bar is shown: on a terminal, through a launcher's pipes as well, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from tests.helpers.launch import ROOT

ASK = "import sys; from utils.ranks.launcher import terminal_columns; print(terminal_columns())"
# The launcher: it has the terminal, and what it starts has pipes.
LAUNCH = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASK!r}], stderr=subprocess.PIPE)"


@pytest.mark.parametrize(
    ("code", "ranks", "terminal", "seen"),
    [(ASK, 1, True, True), (ASK, 1, False, False), (LAUNCH, 2, True, True), (LAUNCH, 2, False, False),
     (LAUNCH, 1, True, False)],
)  # fmt: skip
def test_terminal_is_that_of_the_launcher(code, ranks, terminal, seen, tmp_path):
    parent, child = pty.openpty()
    environment = {**os.environ, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": str(ranks)}
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=child if terminal else log,
                              env=environment, cwd=ROOT, check=True)  # fmt: skip
    os.close(parent)
    os.close(child)
    assert (int(done.stdout) > 0) == seen
