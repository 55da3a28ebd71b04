"""The doctor on two hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster
from tests.cluster.runs import BIN, ENVIRONMENT, HYDRA
from tests.helpers.launch import ROOT

DOCTOR = [BIN / "python", "-m", "utils.doctor"]
LAUNCHER = [BIN / "mpirun", "-np", "2", "-host", "node1,node2", "--bind-to", "none"]
if HYDRA:
    LAUNCHER = [BIN / "mpiexec.hydra", "-np", "2", "-hosts", "node1,node2"]


def examine(cluster: Cluster, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return cluster.login.run(*words, check=False, timeout=300, cwd=ROOT, **ENVIRONMENT, **more)


@pytest.mark.short
def test_two_hosts_that_are_well(cluster: Cluster, tmp_path: Path) -> None:
    done = examine(cluster, *LAUNCHER, *DOCTOR, "--log_dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "ranks                2 on 2 nodes: node1 (1), node2 (1)",
        "network              node1 10.77.0.2 (eth0); node2 10.77.0.3 (eth0)",
        "all is well          2 ranks can train together",
    ):
        assert done.stdout.count(line) == 1, done.stdout
    assert "docker0" not in done.stdout


def test_a_folder_that_only_one_host_has(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    cluster.nodes[1].run("mount", "-t", "tmpfs", "tmpfs", tmp_path / "own")
    try:
        done = examine(cluster, *LAUNCHER, *DOCTOR, "--log_dir", tmp_path / "own")
    finally:
        cluster.nodes[1].run("umount", tmp_path / "own")
    assert done.returncode == 1
    assert f"WRONG                node2 do not see what node1 writes to {tmp_path / 'own'}" in done.stdout


def test_tasks_of_srun_that_do_not_know_of_each_other_are_one_report(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = examine(cluster, "srun", "-N", "2", "-n", "2", "--mpi=none", *DOCTOR)
    assert done.returncode == 1
    assert done.stdout.count("WRONG                srun started 2 tasks that do not know of each other") == 1


def test_ranks_that_open_mpi_binds_to_one_core(cluster: Cluster, tmp_path: Path) -> None:
    if HYDRA:
        pytest.skip("hydra binds nothing")
    done = examine(cluster, *LAUNCHER[:-2], *DOCTOR, "--log_dir", tmp_path)
    assert done.returncode == 1
    assert "WRONG                each rank has 1 of " in done.stdout


def test_a_slow_network_is_told(cluster: Cluster, tmp_path: Path) -> None:
    for node in cluster.nodes[:2]:
        node.limit(100)
    try:
        done = examine(cluster, *LAUNCHER, *DOCTOR, "--log_dir", tmp_path)
    finally:
        for node in cluster.nodes[:2]:
            node.limit(None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note                 reducing takes long: --fp16_allreduce" in done.stdout
