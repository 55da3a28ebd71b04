"""The hosts of the tests themselves: they are like hosts, and nothing is left of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.host import wait_until
from tests.cluster.hosts import NODES, Cluster
from tests.helpers.launch import ROOT

pytestmark = pytest.mark.short


def processes(folder: Path) -> list[psutil.Process]:
    """Return the daemons of the hosts whose files are in the folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or [])
    ]


def test_hosts_reach_each_other_and_slurm_runs_jobs_on_them(cluster: Cluster) -> None:
    assert cluster.login.run("ssh", "node2", "hostname").stdout == "node2\n"
    done = cluster.login.run("srun", "-N", "3", "hostname")
    assert sorted(done.stdout.split()) == list(NODES)


def test_a_host_is_cut_off_and_comes_back(cluster: Cluster) -> None:
    node, words = cluster.nodes[0], ("ssh", "-o", "ConnectTimeout=2", "node1", "hostname")
    node.cut_off()
    assert cluster.login.run(*words, check=False).returncode == 255
    node.plug_in()
    wait_until(lambda: cluster.login.run(*words, check=False).returncode == 0, "node1 does not come back")


def test_nothing_is_left_of_hosts_whose_tests_were_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.cluster.hosts", tmp_path / "hosts", "sleep", "600"]
    mounts = Path("/proc/mounts").read_text()
    process = subprocess.Popen(words, cwd=ROOT)
    wait_until(lambda: len(processes(tmp_path)) > 8, "the hosts do not start")  # sshd and munged of each
    process.kill()
    process.wait()
    wait_until(lambda: not processes(tmp_path), "processes are left", timeout=10)
    assert Path("/proc/mounts").read_text() == mounts
