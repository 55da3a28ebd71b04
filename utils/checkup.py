"""Looks at the ranks that a launcher has started, for `mpirun … python -m utils.doctor`: one report, by rank 0.

Do they reach each other, and how fast? Which cores and GPUs do they have, do they see the same files, do their clocks
and versions agree? The functions that find what is wrong are those of facts alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import EXIT_FAILED, UserError
from utils.doctor import problems, show
from utils.probe import PACKAGES, container, probe, version_of
from utils.ranks.interfaces import addresses, bridges
from utils.ranks.killed_rank import end_at_once
from utils.ranks.launcher import is_first_process, launcher_name, launcher_rank
from utils.startup import NVIDIA, configure_environment, import_tensorflow

if TYPE_CHECKING:
    from utils.ranks.world import World

PATIENCE = 300.0  # seconds for all of it, after which the ranks are taken not to reach each other
SEEN_WITHIN = 10.0  # seconds after which a new file must be seen on other hosts; NFS asks every few seconds
CLOCKS = 5.0  # seconds that clocks may differ
SLOW = 1.0  # seconds for the gradients of the smallest model
# Bytes of float32 gradients that each step reduces.
GRADIENTS = {"EfficientDet-D0": 17.1e6, "EfficientDet-D4": 106.3e6, "DeepLabV3+": 164.2e6}
REPEATS = 3
SHOWN = 4  # hosts that are named in a line


@dataclass(frozen=True)
class Facts:
    """What a rank finds where it runs. `wrong` has the lines of the doctor of one host."""

    host: str
    cores: frozenset[int] = frozenset((0, 1))
    all_cores: int = 2
    addresses: dict[str, str] = field(default_factory=dict)
    bridges: Sequence[str] = ()
    chosen: bool = False  # whether somebody has said which interfaces Open MPI is to take
    versions: dict[str, str] = field(default_factory=dict)
    wrong: Sequence[str] = ()

    @classmethod
    def found(cls, first_of_host: bool) -> Facts:
        from utils.reporting.environment import suite_version

        loaded = probe()
        versions = {name: version_of(name) for name in PACKAGES}
        compared = {
            **{name: version for name, version in versions.items() if version},
            "python": platform.python_version(),
            "MPI library": str(loaded["mpi_library"]),
            "suite": suite_version(),
            "container": container(),
        }
        return cls(
            platform.node(),
            frozenset(os.sched_getaffinity(0)),
            os.cpu_count() or 1,
            addresses(),
            bridges(),
            any(name.startswith("OMPI_MCA_btl_tcp_if_") for name in os.environ),
            compared,
            list(problems(loaded, versions, NVIDIA.exists())) if first_of_host else [],
        )


def main_of_ranks(log_dir: Path) -> int:
    """Collective: look at everything, and let rank 0 report. Return the exit code, the same on all ranks."""
    options = argparse.Namespace(verbose=False, no_cuda=False)
    configure_environment(options)
    import_tensorflow(options.verbose)
    from utils.ranks.world import init_world

    timer = threading.Timer(PATIENCE, give_up)
    timer.daemon = True
    timer.start()
    try:
        world = init_world(True)
    except UserError as error:
        time.sleep(0 if is_first_process() else 2)  # a launcher ends all when one has ended
        return show([("WRONG", str(error))]) if is_first_process() else EXIT_FAILED
    lines = list(report(world, log_dir))
    code = world.broadcast(show(lines) if world.is_first else 0)
    timer.cancel()
    world.barrier()
    return code


def give_up() -> None:
    rank, size = launcher_rank()
    if rank == 0:
        found = ", ".join(f"{address} ({name})" for name, address in addresses().items())
        show(
            [
                (
                    "WRONG",
                    f"{size} ranks do not reach each other within {PATIENCE:.0f} s. {platform.node()} has {found}: "
                    "name the interface that all hosts share, for Open MPI MPIRUN_ARGS='-mca btl_tcp_if_include NAME', "
                    "for MPICH UCX_NET_DEVICES=NAME, for Intel MPI FI_TCP_IFACE=NAME; and look whether a firewall is "
                    "between the hosts",
                )
            ]
        )
    sys.stdout.flush()
    end_at_once("", EXIT_FAILED)


def report(world: World, log_dir: Path) -> Iterator[tuple[str, str]]:
    """Collective: yield (name, value) of all that is looked at; what rank 0 yields is the report."""
    from utils.ranks.devices import devices_of_rank
    from utils.reporting.environment import describe_nodes

    has_gpu, gpu_problem = False, ""
    try:  # first, for TensorFlow takes its threads and devices before it computes anything
        has_gpu = bool(devices_of_rank(world, no_cuda=False))
    except UserError as error:
        gpu_problem = str(error)
    facts = world.gather(Facts.found(world.local_rank == 0))
    yield "launcher", launcher_name()
    yield "ranks", describe_nodes([rank.host for rank in facts])
    yield "cores", describe_cores(facts)
    yield "network", describe_network(facts)
    wrong = [*problems_of_hosts(facts), *differences(facts), *binding(facts), *interfaces(facts)]
    wrong += [gpu_problem] if gpu_problem else []
    seconds = allreduce_seconds(world)
    yield "allreduce", describe_allreduce(seconds, world.size)
    if seconds > SLOW:
        yield (
            "note",
            "reducing takes long: --fp16_allreduce halves the bytes, --accumulate_steps does it less often",
        )
    found = sum(map(bool, world.gather(has_gpu)))
    yield "GPUs", f"one for each of {found} ranks" if found else "none: the ranks compute on CPUs"
    if 0 < found < world.size:
        wrong.append(f"{world.size - found} of {world.size} ranks see no GPU")
    world.barrier()
    clocks = world.gather(time.time())
    apart = max(clocks) - min(clocks)
    yield "clocks", f"{apart:.2f} s apart"
    if apart > CLOCKS:
        wrong.append(f"the clocks of the hosts are {apart:.0f} s apart: synchronise them (chrony, ntpd)")
    line = unseen(log_dir, world)
    yield "log_dir", line or f"all ranks see the same files in {log_dir.absolute()}"
    wrong += [line] if line else []
    yield from facts[0].versions.items()
    for line in wrong:
        yield "WRONG", line
    if not wrong:
        yield "all is well", f"{world.size} ranks can train together"


def describe_cores(facts: Sequence[Facts]) -> str:
    kinds = Counter((len(rank.cores), rank.all_cores) for rank in facts)
    return "; ".join(f"{count} ranks with {n} of {of}" for (n, of), count in kinds.items())


def describe_network(facts: Sequence[Facts]) -> str:
    hosts = {rank.host: rank.addresses for rank in facts}
    shown = [
        f"{host} {', '.join(f'{address} ({name})' for name, address in found.items()) or 'loopback only'}"
        for host, found in list(hosts.items())[:SHOWN]
    ]
    return "; ".join([*shown, *["…"] * (len(hosts) > SHOWN)])


def describe_allreduce(seconds: float, ranks: int) -> str:
    """Return how long the gradients of each model take, from those of the first one."""
    (name, size), *others = GRADIENTS.items()
    rate = 2 * (ranks - 1) / ranks * size * 8 / seconds / 1e9
    more = ", ".join(f"{other} about {seconds * bytes_ / size:.2g} s" for other, bytes_ in others)
    return f"{size / 1e6:.0f} MB per step of {name} take {seconds:.2g} s ({rate:.2g} Gbit/s); {more}"


def problems_of_hosts(facts: Sequence[Facts]) -> list[str]:
    """Return the lines of the hosts, each once, with the hosts that say it."""
    return _by_value([(line, rank.host) for rank in facts for line in rank.wrong], "{} on {}")


def differences(facts: Sequence[Facts]) -> list[str]:
    """Return a line for each version that is not the same everywhere."""
    lines = []
    for name in {name: None for rank in facts for name in rank.versions}:
        found = [(rank.versions.get(name, "missing"), rank.host) for rank in facts]
        if len({value for value, _ in found}) > 1:
            lines.append(f"{name} differs: {'; '.join(_by_value(found, '{} on {}'))}")
    return lines


def _by_value(found: Sequence[tuple[str, str]], form: str) -> list[str]:
    hosts: dict[str, dict[str, None]] = defaultdict(dict)
    for value, host in found:
        hosts[value][host] = None
    return [
        form.format(value, ", ".join([*list(names)[:SHOWN], *["…"] * (len(names) > SHOWN)]))
        for value, names in hosts.items()
    ]


def binding(facts: Sequence[Facts]) -> list[str]:
    """Return what is wrong with the cores that ranks are bound to: one alone, or too few for the ranks of a host."""
    of_host = defaultdict(list)
    for rank in facts:
        of_host[rank.host].append(rank)
    crowded, narrow = {}, {}
    for host, ranks in of_host.items():
        shared = len(frozenset[int]().union(*(rank.cores for rank in ranks)))
        if shared < len(ranks) and shared < ranks[0].all_cores:
            crowded[host] = f"{len(ranks)} ranks share {shared} of {ranks[0].all_cores} cores"
        elif min(len(rank.cores) for rank in ranks) == 1 and ranks[0].all_cores > len(ranks):
            narrow[host] = f"each rank has 1 of {ranks[0].all_cores} cores, which its samplers share"
    advice = (
        "bind to none (mpirun --bind-to none, as run_train.sh does), or ask for more (sbatch --cpus-per-task)"
    )
    return [
        f"{line}: {advice}"
        for found in (crowded, narrow)
        for line in _by_value([(text, host) for host, text in found.items()], "{} on {}")
    ]


def interfaces(facts: Sequence[Facts]) -> list[str]:
    """Return a line if hosts have an address in common, by which Open MPI's ranks may wait for ever."""
    hosts = {rank.host: rank for rank in facts}.values()
    counts = Counter(address for host in hosts for address in host.addresses.values())
    twice = sorted(address for address, count in counts.items() if count > 1)
    lines = [f"several hosts have the address {', '.join(twice)}"] if twice else []
    unknown = sorted({name for host in hosts if not host.chosen for name in host.bridges})
    if unknown and len(hosts) > 1 and "Open MPI" in hosts_mpi(facts):
        lines.append(
            f"{', '.join(unknown)} lead to no other host, but Open MPI may use them and hang: "
            f"MPIRUN_ARGS='-mca btl_tcp_if_exclude lo,{','.join(unknown)}'"
        )
    return lines


def hosts_mpi(facts: Sequence[Facts]) -> str:
    return facts[0].versions.get("MPI library", "")


def allreduce_seconds(world: World) -> float:
    """Collective: return the median of the seconds that the gradients of the smallest model take."""
    import tensorflow as tf

    gradients = tf.constant(np.ones(int(next(iter(GRADIENTS.values()))) // 4, np.float32))
    seconds = []
    for _ in range(REPEATS + 1):  # the first one makes the connections
        world.barrier()
        start = time.monotonic()
        world.mean_in_graph(gradients).numpy()
        seconds.append(max(world.gather(time.monotonic() - start)))
    return statistics.median(seconds[1:])


def unseen(folder: Path, world: World) -> str:
    """Collective: write a file on rank 0. Return which hosts do not see it, "" if all do. Nothing is left of it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()] if world.is_first else []
    file = folder / world.broadcast(f".doctor-{secrets.token_hex(8)}")
    message = ""
    if world.is_first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            message = f"--log_dir {folder} cannot be written: {error}"
    message = world.broadcast(message)
    until = time.monotonic() + SEEN_WITHIN
    while not message and not file.exists() and time.monotonic() < until:
        time.sleep(0.2)
    missing = [host for host, sees in world.gather((platform.node(), file.exists())) if not sees]
    if world.is_first:
        with suppress(OSError):
            file.unlink()
            for path in made:
                path.rmdir()
    if message or not missing:
        return message
    names = ", ".join(list(dict.fromkeys(missing))[:SHOWN])
    return f"{names} do not see what {platform.node()} writes to {folder.absolute()}: take a folder that hosts share"
