"""The formula of an allreduce (utils/ranks/network.py) against Horovod on two hosts, whose network is slowed down.

It prints what it measures (pytest -s). How much longer it takes depends on the machine; shorter it cannot be.
"""

from __future__ import annotations

import json

import pytest

from tests.cluster.hosts import Cluster
from tests.cluster.runs import BIN, ENVIRONMENT, HYDRA
from tests.helpers.launch import ROOT
from utils.checkup import GRADIENTS
from utils.ranks.network import Network

LAUNCHER = [BIN / "mpirun", "-np", "2", "-host", "node1,node2", "--bind-to", "none"]
if HYDRA:
    LAUNCHER = [BIN / "mpiexec.hydra", "-np", "2", "-hosts", "node1,node2"]


@pytest.mark.parametrize("megabit", [100, 1000])
def test_an_allreduce_takes_no_less_than_the_formula_says(cluster: Cluster, megabit: int) -> None:
    for node in cluster.nodes[:2]:
        node.limit(megabit)
    try:
        done = cluster.login.run(
            *LAUNCHER, BIN / "python", "benchmarks/allreduce.py", cwd=ROOT, timeout=600, **ENVIRONMENT
        )
    finally:
        for node in cluster.nodes[:2]:
            node.limit(None)
    for row in map(json.loads, done.stdout.strip().splitlines()):
        expected = Network(megabit / 1000, 50).allreduce(row["bytes"], 2)
        ratio = row["seconds"] / expected
        print(f"{megabit} Mbit/s, {row}: {ratio:.2f} times the formula")
        assert ratio > 0.8
        assert row["bytes"] in map(int, GRADIENTS.values())
