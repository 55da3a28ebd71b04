"""The run scripts: each loads the modules that were named, and starts its program with the launcher of the MPI."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.launch import ROOT, wait_for

SCRIPTS = ("run_train.sh", "run_predict.sh", "run_prepro.sh")
# Stands for mpirun, mpiexec.hydra, module and python: it writes down how it was called.
NOTE = """#!/bin/sh
echo "${MPIRUN_SAYS:-}"
echo "$(basename "$0") $*" >>"$NOTES"
echo "FI_PROVIDER=${FI_PROVIDER:-} NP=${NP:-}" >>"$NOTES"
"""


# Stands for an mpirun whose ranks write a checkpoint after SIGUSR1, which takes a while.
LAUNCHER = """#!/bin/sh
trap 'echo INT >>"$NOTES"' INT
trap 'echo USR1 >>"$NOTES"; [ -n "$SLOW" ] || exit 75' USR1
trap 'echo TERM >>"$NOTES"; exit 1' TERM
echo started >>"$NOTES"
while :; do sleep 0.05; done
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts a run script in a folder with a space, with stand-ins for all that it starts; returns their notes.

    `ctrl_c` is how often it is pressed, and the script's exit code must be that of an interrupted program then.
    """
    top, tools = tmp_path / "a clone", tmp_path / "bin"
    (top / "utils").mkdir(parents=True)
    tools.mkdir()
    for name in (*SCRIPTS, "train.py", "predict.py", "utils/launch.sh"):
        shutil.copy(ROOT / name, top / name)
    (top / "utils/env.sh").write_text(f"VENV={tmp_path} MPI=${{MPI:-openmpi}}\n")
    for name in ("mpirun", "mpiexec.hydra", "module", "python"):
        (tools / name).write_text(NOTE)
        (tools / name).chmod(0o755)

    def run(script: str, *words: str, ctrl_c: int = 0, **environment: str) -> str:
        notes = tmp_path / "notes"
        notes.write_text("")
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(notes), **environment}
        command = ["sh", str(top / script), *words]
        if ctrl_c:
            (tools / "mpirun").write_text(LAUNCHER)
            assert press_ctrl_c(command, env, notes, ctrl_c) == 130
        else:
            subprocess.run(command, env=env, check=True, cwd=tmp_path)
        return notes.read_text()

    return run


def press_ctrl_c(command: list[str], env: dict[str, str], notes: Path, times: int) -> int:
    """Send SIGINT to all processes of a terminal each time that there is another note. Return the exit code."""
    # A shell that runs in the background ignores the signal, and so would the script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=env, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    for pressed in range(times):
        wait_for(lambda pressed=pressed: len(notes.read_text().split()) > pressed, process)
        os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_modules_are_loaded_inside_of_a_job_only(start, script):
    inside = start(script, "--x", SLURM_JOB_ID="7", MODULES="2023 OpenMPI", NP="2")
    assert inside.splitlines()[0] == "module load 2023 OpenMPI"
    assert "module load" not in start(script, "--x", MODULES="2023 OpenMPI", NP="2")


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("mpirun (Open MPI) 4.1.8", "mpirun -np 3 --bind-to none --oversubscribe -x"),
        ("HYDRA build details:\n    Version: 5.0.2", "mpirun -np 3 /"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.17", "mpirun -np 3 /"),
    ],
)
def test_the_systems_mpirun_gets_words_that_it_knows(start, says, words):
    assert f"\n{words}" in start("run_train.sh", "--x", NP="3", MPI="system", MPIRUN_SAYS=says)


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_ranks_are_started_by_the_launcher_of_the_mpi(start, script):
    program = script.removeprefix("run_").replace(".sh", ".py")
    found = start(script, "--x", "a b", NP="3", MPIRUN_ARGS="-map-by ppr:4:node")
    assert found.startswith("mpirun -np 3 ")
    assert "-map-by ppr:4:node" in found
    assert found.splitlines()[0].endswith(f"{program} --x a b")
    found = start(script, "--x", NP="3", MPI="intel")
    assert found.startswith("mpiexec.hydra -np 3 ")
    assert "FI_PROVIDER=tcp" in found  # one node has no fabric to use
    found = start(script, "--x", NP="3", MPI="intel", SLURM_JOB_NODELIST="a,b")
    assert "FI_PROVIDER= " in found


def test_ctrl_c_asks_the_ranks_to_stop_and_twice_ends_them(start):
    """Open MPI's launcher must not see it: it kills its ranks a second later."""
    assert start("run_train.sh", "--x", ctrl_c=1, SLOW="").split() == ["started", "USR1"]
    assert start("run_train.sh", "--x", ctrl_c=2, SLOW="yes").split() == ["started", "USR1", "TERM"]


def test_one_process_that_predicts_needs_no_launcher(start):
    assert start("run_predict.sh", "--x").startswith("python -u ")
