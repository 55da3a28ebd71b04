"""The time that exchanges take on a network that is described by two numbers."""

from __future__ import annotations

import pytest

from utils.ranks.network import CYCLE, PAYLOAD, Network


def test_a_ring_allreduce_sends_nearly_all_twice_and_waits_twice_for_each_rank():
    network = Network(gigabit=8.0, latency=10.0)  # 1e9 bytes per second
    assert network.allreduce(1e9, 4) == pytest.approx(2 * 3 / 4 / PAYLOAD + 6 * 1e-5)
    assert network.allreduce(1e9, 1) == 0


def test_exchanges_come_one_after_the_other():
    network = Network(gigabit=8.0, latency=10.0)
    assert network.exchanges(3e9, 100, 4) == pytest.approx(3 / PAYLOAD + 100 * (CYCLE + 3e-5))


def test_two_ranks_on_two_hosts_take_what_was_measured():
    """benchmarks/README.md: 17.1 MB in eight parts, with Open MPI's two connections."""
    for megabit, seconds in ((100, 1.497), (1000, 0.143)):
        assert Network(megabit / 1000, 50).allreduce(17.1e6, 2) == pytest.approx(seconds, rel=0.1)
