"""What ends a run on two hosts lets it write a checkpoint, and the same command goes on from there."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.host import PATIENCE, Host, end, wait_until
from tests.cluster.hosts import Cluster, Job
from tests.cluster.runs import (
    BIN,
    ENVIRONMENT,
    HYDRA,
    last_step,
    options,
    saved_step,
    wait_until_it_trains,
)

LAUNCHER = "mpiexec.hydra" if HYDRA else "mpirun"
ENDLESS = 10**6
HOSTS = {"MPIRUN_ARGS": "-hosts node1,node2" if HYDRA else "-host node1,node2"}


def start(host: Host, clone: Path, words: list[str], *before: str) -> subprocess.Popen[str]:
    """Start run_train.sh with a rank on each of two hosts, from the login node and by ssh."""
    return host.start(*before, "sh", "run_train.sh", *words, cwd=clone, NP="2", **HOSTS, **ENVIRONMENT)


def submit(cluster: Cluster, clone: Path, words: list[str], *more: str, **environment: str) -> Job:
    """Submit run_train.sh with a rank on each of two nodes."""
    size = ["-N", "2", "--ntasks-per-node=1", "-o", str(Path(words[-1]).with_suffix(".out"))]
    return cluster.submit(*size, *more, "run_train.sh", *words, cwd=clone, **environment, **ENVIRONMENT)


def assert_saved(log_dir: Path) -> None:
    """Check that no step was lost: the checkpoint is not older than the last line of the log."""
    assert saved_step(log_dir) >= last_step(log_dir) > 0


def stop(cluster: Cluster, process: subprocess.Popen[str], word: str = "run_train.sh") -> tuple[str, str]:
    """Send SIGTERM to the program on the login node whose command line has the word. Return what the run said."""
    found = [p for p in cluster.login.processes(word) if "nsenter" not in p.cmdline()[0]]
    min(found, key=lambda p: p.pid).terminate()
    return process.communicate(timeout=PATIENCE)


def assert_it_goes_on(cluster: Cluster, clone: Path, words: list[str]) -> None:
    """Start a run that was stopped once more, wait until it has got further, and stop it again."""
    log_dir = Path(words[-1])
    step = saved_step(log_dir)
    process = start(cluster.login, clone, words)
    try:
        seconds = wait_until(lambda: last_step(log_dir) > step + 8, "the run does not go on")
        out, errors = stop(cluster, process)
    finally:
        end(process)
    print(
        f"goes on from step {step}: {seconds:.0f} s from the command until it has logged a step after {step + 8}"
    )
    assert f"goes on at step {step}" in out
    assert process.returncode == 75, errors
    assert_saved(log_dir)


def ranks_left(cluster: Cluster) -> list[psutil.Process]:
    return [process for node in cluster.nodes for process in node.processes("train.py")]


def test_scancel_leaves_a_checkpoint_and_the_job_does_not_come_back(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    log_dir = tmp_path / "log"
    job = submit(cluster, clone, options(demo, log_dir, ENDLESS), "--requeue", REQUEUE="1")
    wait_until_it_trains(log_dir)
    job.cancel()
    facts = job.wait()
    assert facts["ExitCode"] == "75:0", log_dir.with_suffix(".out").read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    assert_saved(log_dir)


def test_a_job_that_is_requeued_again_and_again_ends_as_it_should(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    """Slurm's signal comes to the batch script alone."""
    log_dir, steps = tmp_path / "log", 1000
    job = submit(cluster, clone, options(demo, log_dir, steps), "--requeue", REQUEUE="1")
    for _ in range(2):
        before = last_step(log_dir)
        wait_until_it_trains(log_dir, before + 8)
        cluster.login.run("scancel", "--batch", "--signal=USR1", job.number)
        wait_until(lambda: job.state != "RUNNING", "the job does not stop", timeout=PATIENCE)
        assert_saved(log_dir)
    facts = job.wait(timeout=900)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2")
    assert last_step(log_dir) == steps


@pytest.mark.parametrize("target", ["run_train.sh", "launcher"])
def test_kill_leaves_a_checkpoint(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path, target: str
) -> None:
    log_dir = tmp_path / "log"
    process = start(cluster.login, clone, options(demo, log_dir, ENDLESS))
    try:
        wait_until_it_trains(log_dir)
        out, errors = stop(cluster, process, target if target == "run_train.sh" else f"/{LAUNCHER} ")
    finally:
        end(process)
    assert process.returncode == 75, out + errors
    assert_saved(log_dir)
    assert not ranks_left(cluster)


def test_timeout_leaves_a_checkpoint_and_the_same_command_goes_on(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    words = options(demo, tmp_path / "log", ENDLESS)
    process = start(cluster.login, clone, words, "timeout", "--preserve-status", "120")
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        end(process)
    assert process.returncode == 75, errors
    assert_saved(tmp_path / "log")
    assert_it_goes_on(cluster, clone, words)


def test_a_rank_that_dies_ends_the_run_at_once(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    log_dir = tmp_path / "log"
    process = start(cluster.login, clone, options(demo, log_dir, ENDLESS))
    try:
        wait_until_it_trains(log_dir)
        cluster.nodes[1].processes("train.py")[-1].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        end(process)
    print(f"ended {time.monotonic() - begin:.1f} s after the death of a rank, with {process.returncode}")
    assert process.returncode not in (0, 75), errors
    assert time.monotonic() - begin < 30
    assert not ranks_left(cluster)


def test_without_the_scripts_sigusr1_stops_the_run(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    """A launcher's own command line, as docs/clusters.md has it."""
    log_dir = tmp_path / "log"
    launcher = [BIN / LAUNCHER, "-np", "2", *HOSTS["MPIRUN_ARGS"].split()]
    words = [BIN / "python", "-u", "train.py", *options(demo, log_dir, ENDLESS)]
    process = cluster.login.start(*launcher, *words, cwd=clone, **ENVIRONMENT)
    try:
        wait_until_it_trains(log_dir)
        found = [p for p in cluster.login.processes(f"/{LAUNCHER} ") if "nsenter" not in p.cmdline()[0]]
        min(found, key=lambda p: p.pid).send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        end(process)
    assert process.returncode == 75, errors
    assert_saved(log_dir)
