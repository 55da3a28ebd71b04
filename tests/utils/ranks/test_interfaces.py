"""Which networks ranks use to reach each other."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from utils.ranks import interfaces


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host with a network, another one that is down, and a bridge to containers, in Open MPI's environment."""
    addresses = {"lo": "127.0.0.1", "eth0": "10.0.0.7", "eth1": "10.1.0.7", "docker0": "172.17.0.1"}
    states = {name: SimpleNamespace(isup=name != "eth1") for name in addresses}
    found = {
        name: [SimpleNamespace(family=socket.AF_INET, address=address)] for name, address in addresses.items()
    }
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(interfaces.importlib.metadata, "distributions", lambda name: [name])
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(interfaces.sys, "prefix", str(tmp_path))
    for name in (interfaces._INCLUDE, interfaces._EXCLUDE):
        monkeypatch.setenv(name, "")  # put back after the test
        monkeypatch.delenv(name)
    return states


def excluded() -> str | None:
    interfaces.leave_out_bridges()
    return dict(os.environ).get(interfaces._EXCLUDE)


def test_addresses_are_those_by_which_others_reach_this_host(host):
    assert interfaces.addresses() == {"eth0": "10.0.0.7"}


def test_open_mpi_leaves_bridges_to_containers_out(host):
    assert excluded() == "127.0.0.1/8,sppp,docker0"


def test_without_such_bridges_nothing_is_set(host):
    del host["docker0"]
    assert excluded() is None


def test_what_the_user_says_of_the_interfaces_counts(host, monkeypatch, tmp_path):
    monkeypatch.setenv("OMPI_MCA_btl_tcp_if_include", "eth0")
    assert excluded() is None
    monkeypatch.delenv("OMPI_MCA_btl_tcp_if_include")
    (tmp_path / ".openmpi").mkdir()
    (tmp_path / ".openmpi/mca-params.conf").write_text("btl_tcp_if_include = eth0\n")
    assert excluded() is None


def test_the_mpi_of_a_cluster_has_files_of_its_own(host, monkeypatch):
    monkeypatch.setattr(interfaces.importlib.metadata, "distributions", lambda name: [])
    assert excluded() is None
