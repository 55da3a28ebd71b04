"""Ranks on several hosts over ssh, and jobs whose environment is not that of the login node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.hosts import CPUS, Cluster
from tests.cluster.runs import BIN, ENVIRONMENT, HYDRA, last_step, options

WHERE = "-hosts node1,node2" if HYDRA else "-host node1,node2"


def test_run_train_reaches_hosts_whose_login_knows_no_mpi(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    """Also with a bridge to containers on each host, which has the same address everywhere."""
    assert "docker0" in cluster.nodes[1].run("ip", "link").stdout
    assert cluster.login.run("ssh", "node2", "command -v orted", check=False).returncode != 0
    done = cluster.login.run(
        *("sh", "run_train.sh", *options(demo, tmp_path / "log", steps=16)),
        cwd=clone,
        timeout=300,
        NP="2",
        MPIRUN_ARGS=WHERE,
        **ENVIRONMENT,
    )
    assert last_step(tmp_path / "log") == 16
    assert "2 on 2 nodes: node1 (1), node2 (1)" in done.stdout


@pytest.mark.parametrize("export", ["ALL", "NONE"])
def test_a_job_needs_nothing_of_the_environment_it_was_submitted_from(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path, export: str
) -> None:
    size = ["-N", "2", "--ntasks-per-node=1", f"--export={export}", "-o", tmp_path / "out"]
    script = ["run_train.sh", *options(demo, tmp_path / "log", steps=16)]
    if HYDRA:  # --export=NONE takes this away as well
        (tmp_path / "job.sh").write_text('#!/bin/sh\nexport MPI=intel\nexec sh run_train.sh "$@"\n')
        script[0] = str(tmp_path / "job.sh")
    facts = cluster.submit(*size, *script, cwd=clone, **ENVIRONMENT).wait(300)
    said = (tmp_path / "out").read_text()
    assert (facts["JobState"], last_step(tmp_path / "log")) == ("COMPLETED", 16), said
    assert "2 on 2 nodes" in said


@pytest.mark.parametrize("kind", ["PBS", "LSF"])
def test_a_job_of_another_batch_system_uses_its_hosts(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path, kind: str
) -> None:
    """The job is made up: its list of hosts, on the first of them."""
    hosts = tmp_path / "hosts"
    hosts.write_text("node1\nnode2\n")
    job = {"PBS_JOBID": "7", "PBS_NODEFILE": str(hosts)}
    if kind == "LSF":
        job = {"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "node1 1 node2 1"}
    words = ["sh", "run_train.sh", *options(demo, tmp_path / "log", steps=16)]
    done = cluster.nodes[0].run(*words, cwd=clone, timeout=300, **job, **ENVIRONMENT)
    assert last_step(tmp_path / "log") == 16
    assert "2 on 2 nodes: node1 (1), node2 (1)" in done.stdout


def test_preprocessing_takes_the_node_that_there_is(
    cluster: Cluster, clone: Path, demo: Path, tmp_path: Path
) -> None:
    """The nodes have fewer than 16 CPUs."""
    words = ["--train_tumor_wsi_path", demo / "slides", "--train_tumor_mask_path", demo / "masks"]
    words += ["--save_positive_path", tmp_path / "positive", "--patch_size", "256"]
    job = cluster.submit("-o", tmp_path / "out", "run_prepro.sh", *words, cwd=clone, **ENVIRONMENT)
    facts = job.wait()
    assert facts["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    assert facts["NumCPUs"] == str(CPUS)
    assert "positive: " in (tmp_path / "out").read_text()


def test_no_more_than_one_core_per_rank_is_what_open_mpi_does_by_itself(cluster: Cluster) -> None:
    """This is why the scripts and the documented lines have --bind-to none."""
    if HYDRA:
        pytest.skip("hydra binds nothing")
    code = "import os; print('cores', len(os.sched_getaffinity(0)))"
    for more, cores in ((["--bind-to", "none"], len(os.sched_getaffinity(0))), ([], 1)):
        words = [BIN / "mpirun", "-np", "2", "-host", "node1,node2", *more, BIN / "python", "-c", code]
        assert cluster.login.run(*words, **ENVIRONMENT).stdout == f"cores {cores}\n" * 2
