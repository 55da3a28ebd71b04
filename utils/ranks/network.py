"""How long ranks take to exchange data over a network with a bandwidth and a latency: a model, not a measurement."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

# Seconds: ranks that share patches agree on what to exchange once per cycle (HOROVOD_CYCLE_TIME in utils/startup.py).
CYCLE = 1e-3
# Share of the bandwidth that carries gradients: the rest is headers, and pauses of MPI. Measured with 17 to 164 MB, two
# ranks on two hosts: 0.89 to 0.91 at 100 Mbit/s with Open MPI, 0.88 at 1 Gbit/s; 0.87 to 0.93 and 0.91 with MPICH.
PAYLOAD = 0.92


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `Network.of` reads."""
    add = parser.add_argument
    add("--gigabit", type=float, default=100.0, help="assumed network bandwidth per rank in Gbit/s")
    add("--latency", type=float, default=5.0, help="assumed latency of a message in µs")


@dataclass(frozen=True)
class Network:
    """`gigabit`: Gbit/s that each rank has for itself. `latency`: µs of a message.

    Nothing of the time is hidden behind the computation, and ranks of a node are no nearer than others.
    """

    gigabit: float
    latency: float

    @classmethod
    def of(cls, options: argparse.Namespace) -> Network:
        return cls(options.gigabit, options.latency)

    def allreduce(self, size: float, ranks: int) -> float:
        """Return the seconds of a ring allreduce of `size` bytes over `ranks` ranks."""
        return 2 * (ranks - 1) / ranks * self._transfer(size) + 2 * (ranks - 1) * self.latency * 1e-6

    def exchanges(self, sent: float, count: int, ranks: int) -> float:
        """Return the seconds of `count` alltoalls one after the other, in all of which a rank sends `sent` bytes."""
        return self._transfer(sent) + count * (CYCLE + (ranks - 1) * self.latency * 1e-6)

    def _transfer(self, size: float) -> float:
        return size * 8 / (self.gigabit * 1e9 * PAYLOAD)
