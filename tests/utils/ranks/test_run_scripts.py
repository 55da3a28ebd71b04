"""The run scripts: each loads the modules that were named, and starts its program with the launcher of the MPI."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.interrupting import interruptible
from tests.helpers.launch import ROOT, wait_for

SCRIPTS = ("run_train.sh", "run_predict.sh", "run_prepro.sh")
# Stands for mpirun, mpiexec.hydra, module and python: it writes down how it was called.
NOTE = """#!/bin/sh
case "$1" in *shielded.py) shift && exec "$@" ;; esac
echo "${MPIRUN_SAYS:-}"
echo "$(basename "$0") $*" >>"$NOTES"
case " $* " in *" -machinefile "*) tr '\\n' , </dev/fd/3 >>"$NOTES" ;; esac
echo "FI_PROVIDER=${FI_PROVIDER:-} NP=${NP:-} EXPORT=${SLURM_EXPORT_ENV:-}" \\
    "ASK=${OMPI_MCA_oob_tcp_keepalive_time:-} OVERLAP=${SLURM_OVERLAP:-}" >>"$NOTES"
exit ${STATUS:-0}
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
    for name in ("mpirun", "mpiexec.hydra", "module", "python", "scontrol"):
        (tools / name).write_text(NOTE)
        (tools / name).chmod(0o755)

    def run(script: str, *words: str, ctrl_c: int = 0, **environment: str) -> str:
        notes = tmp_path / "notes"
        notes.write_text("")
        others = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))
        }
        env = {**others, "PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(notes), **environment}
        command = ["sh", str(top / script), *words]
        if ctrl_c:
            (tools / "mpirun").write_text(LAUNCHER)
            assert press_ctrl_c(command, env, notes, ctrl_c) == 130
        else:
            done = subprocess.run(command, env=env, check=False, cwd=tmp_path)
            assert done.returncode == int(environment.get("STATUS", "0"))
        return notes.read_text()

    return run


def press_ctrl_c(command: list[str], env: dict[str, str], notes: Path, times: int) -> int:
    """Send SIGINT to all processes of a terminal each time that there is another note. Return the exit code."""
    with interruptible():
        process = subprocess.Popen(command, env=env, start_new_session=True)
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
        ("mpirun (Open MPI) 4.1.8", "mpirun -np 3 --bind-to none --oversubscribe "),
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
    for several in (
        {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"},
        {"SLURM_JOB_ID": "7"},
        {"MPIRUN_ARGS": "-hosts a,b"},
        {"MPIRUN_ARGS": "-f hosts"},
        {"I_MPI_HYDRA_HOST_FILE": "hosts"},
        {"LSB_MCPU_HOSTS": "a 2 b 2"},
    ):
        assert "FI_PROVIDER= " in start(script, "--x", NP="3", MPI="intel", **several), several
    one = start(script, "--x", NP="3", MPI="intel", SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="1")
    assert "FI_PROVIDER=tcp" in one


@pytest.mark.parametrize("script", SCRIPTS[:2])
@pytest.mark.parametrize(
    ("job", "ranks"),
    [
        ({"PBS_JOBID": "7", "PBS_NODEFILE": "a\na\nb.cluster\n"}, "a:2,b.cluster:1"),
        ({"LSB_JOBID": "7", "LSB_DJOB_HOSTFILE": "b\na\nb\n"}, "b:2,a:1"),
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "a 2 b 1"}, "a:2,b:1"),
    ],
)
def test_hosts_and_ranks_are_those_of_a_pbs_or_lsf_job(start, tmp_path, script, job, ranks):
    for name in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE"):
        if name in job:
            (tmp_path / name).write_text(job[name])
            job = {**job, name: str(tmp_path / name)}
    found = start(script, "--x", MODULES="MPI", **job)
    assert found.startswith("module load MPI\n")
    assert "\nmpirun " in found
    assert f" -np 3 --bind-to none --oversubscribe -host {ranks} " in found
    found = start(script, "--x", MODULES="MPI", MPI="intel", **job)
    assert "\nmpiexec.hydra -np 3 -machinefile /dev/fd/3 " in found
    assert f"\n{ranks},FI_PROVIDER" in found  # Intel MPI's takes no numbers of ranks in its command line
    assert f" -np 2 --bind-to none --oversubscribe -host {ranks} " in start(script, "--x", NP="2", **job)


def test_a_job_of_pbs_or_lsf_starts_daemons_in_its_own_way(start, tmp_path):
    agent = tmp_path / "bin/blaunch"
    agent.write_text(NOTE)
    agent.chmod(0o755)
    assert " -mca plm_rsh_agent blaunch " in start("run_train.sh", "--x", LSB_MCPU_HOSTS="a 2 b 1")
    assert "plm_rsh_agent" not in start("run_train.sh", "--x")


def test_slurms_tasks_come_before_all_else(start):
    found = start("run_train.sh", "--x", SLURM_JOB_ID="7", SLURM_NTASKS="5", LSB_MCPU_HOSTS="a 2 b 1")
    assert " -np 5 --bind-to none --oversubscribe -x " in found


def test_what_sbatch_does_not_export_is_exported_to_the_other_hosts(start):
    assert "EXPORT= " in start("run_train.sh", "--x", SLURM_EXPORT_ENV="NONE")


def test_mpirun_asks_other_hosts_for_a_sign_of_life(start):
    several = {"MPIRUN_ARGS": "-host a,b"}
    assert "ASK=60 " in start("run_train.sh", "--x", **several)
    assert "ASK=7 " in start("run_train.sh", "--x", OMPI_MCA_oob_tcp_keepalive_time="7", **several)
    assert "ASK= " in start("run_train.sh", "--x")


def test_variables_that_are_set_go_to_the_other_hosts(start):
    found = start("run_train.sh", "--x", CACHE_DIR="", TF_ENABLE_ONEDNN_OPTS="0")
    assert " -x CACHE_DIR " in found
    assert " -x TF_ENABLE_ONEDNN_OPTS " in found
    assert " -x CAMELYON_ROOT " not in found


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (1, 0, False), (75, 20, True), (76, 9, True), (76, 10, False), (205, 0, True)],
)
def test_a_job_that_stopped_or_hung_goes_back_into_the_queue(start, status, restarts, again):
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "STATUS": str(status)}
    assert ("scontrol requeue 7" in start("run_train.sh", "--x", REQUEUE="1", **job)) == again
    assert "scontrol" not in start("run_train.sh", "--x", **job)


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_that_was_cancelled_does_not_come_back(start, tmp_path, number, again):
    """Slurm sends SIGUSR1 when the time is nearly up, and SIGTERM after scancel."""
    start("run_train.sh", "--x", NP="2")  # makes the folders
    (tmp_path / "bin/mpirun").write_text(LAUNCHER)
    notes = tmp_path / "notes"
    notes.write_text("")
    job = {"SLURM_JOB_ID": "7", "REQUEUE": "1", "NOTES": str(notes), "SLOW": ""}
    env = {**os.environ, **job, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    process = subprocess.Popen(["sh", str(tmp_path / "a clone/run_train.sh"), "--x"], env=env, text=True)
    wait_for(lambda: notes.read_text(), process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75
    assert ("scontrol requeue 7" in notes.read_text()) == again


def test_a_worker_for_each_core_of_a_slurm_job(start):
    assert " --num_threads" not in start("run_prepro.sh", "--x")
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "12"}
    assert " --num_threads 12 --x" in start("run_prepro.sh", "--x", **job)
    assert " --num_threads 3 --x" in start("run_prepro.sh", "--x", SLURM_CPUS_PER_TASK="3", **job)
    assert " --num_threads" not in start("run_prepro.sh", "--x", OMPI_COMM_WORLD_SIZE="4", **job)


def test_ctrl_c_asks_the_ranks_to_stop_and_twice_ends_them(start):
    """Open MPI's launcher must not see it: it kills its ranks a second later."""
    assert start("run_train.sh", "--x", ctrl_c=1, SLOW="").split() == ["started", "USR1"]
    assert start("run_train.sh", "--x", ctrl_c=2, SLOW="yes").split() == ["started", "USR1", "TERM"]


def test_one_process_that_predicts_needs_no_launcher(start):
    assert start("run_predict.sh", "--x").startswith("python -u ")
    assert start("run_predict.sh", "--x", HOST_SHARE="1/2").startswith("mpirun -np 1 ")


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_hosts_that_are_named_come_before_those_of_the_job(start, script):
    """A group of ranks in a job has its hosts from run_folds.sh."""
    for job in ({}, {"LSB_MCPU_HOSTS": "a 2 b 2 c 2"}, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6"}):
        found = start(script, "--x", RANK_HOSTS="b:2,c", **job)
        assert " -np 3 --bind-to none --oversubscribe -host b:2,c " in found
        assert "ASK=60" in found  # there may be other hosts
        found = start(script, "--x", RANK_HOSTS="b:2", MPI="intel", **job)
        assert found.startswith("mpiexec.hydra -np 2 -machinefile /dev/fd/3 ")
        assert "\nb:2,FI_PROVIDER=" in found


@pytest.mark.parametrize("mpi", ["openmpi", "intel"])
def test_each_rank_takes_its_share_of_the_host(start, mpi):
    found = start("run_train.sh", "--x", NP="2", HOST_SHARE="2/4", MPI=mpi)
    assert re.search(r" \S*/python -m utils.ranks.host_share 2/4 \S*/python -u train.py --x\n", found)


def test_launchers_beside_each_other_do_not_wait_for_each_others_job_steps(start):
    assert "OVERLAP=1\n" in start("run_train.sh", "--x")
