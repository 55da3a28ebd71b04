"""The hosts of a job, and their division into groups of ranks that run side by side."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.cli import UserError
from utils.ranks.host_share import Share


class Host(NamedTuple):
    """A host, and the number of ranks that the batch system has room for on it."""

    name: str
    slots: int


WHOLE = Share(1, 1)


@dataclass(frozen=True)
class Group:
    """Ranks of one launcher: on several hosts, or with a share of one; without hosts where the launcher finds them.

    ranks: None for all that there are, as the scripts find them by themselves.
    """

    ranks: int | None = None
    hosts: tuple[Host, ...] = ()
    share: Share = WHOLE

    def environment(self) -> dict[str, str]:
        """Return the variables with which utils/launch.sh starts these ranks."""
        found = {} if self.ranks is None else {"NP": str(self.ranks)}
        if self.hosts:
            found["RANK_HOSTS"] = ",".join(f"{host.name}:{host.slots}" for host in self.hosts)
        if self.share.parts > 1:
            found["HOST_SHARE"] = str(self.share)
        return found

    def __str__(self) -> str:
        if self.ranks is None:
            return "all ranks"
        where = " on " + ", ".join(host.name for host in self.hosts) if self.hosts else ""
        share = f" with share {self.share} of its cores" if self.share.parts > 1 else ""
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'}{where}{share}"


def read_hosts(text: str) -> list[Host]:
    """Return the hosts of "HOST:RANKS,HOST:RANKS"; a host without a number has one. UserError: it is no such text."""
    hosts = []
    for word in filter(None, text.split(",")):
        name, _, slots = word.partition(":")
        if not name or not (slots or "1").isdecimal() or slots == "0":
            raise UserError(f"{word!r} in RANK_HOSTS is not HOST:RANKS")
        hosts.append(Host(name, int(slots or 1)))
    return hosts


def hosts_of_slurm(environment: Mapping[str, str]) -> list[Host]:
    """Return the nodes of a Slurm job and the tasks that it has on each; none outside of a job."""
    if "SLURM_JOB_NODELIST" not in environment:
        return []
    command = ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    tasks: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_TASKS_PER_NODE"]):  # 4(x2),3
        tasks += [int(number)] * int(times or 1)
    return [Host(*node) for node in zip(names, tasks)]


def divide(hosts: Sequence[Host], ranks: int, number: int) -> list[Group]:
    """Return `number` groups of equal numbers of ranks, each on whole hosts or on an equal share of one.

    hosts: those of all ranks; none or one where the launcher finds it by itself. UserError: that cannot be, with the
    numbers that can.
    """
    if number == 1:
        return [Group()]
    try:
        return list(_groups(hosts, ranks, number))
    except _UnevenError as error:
        able = [str(other) for other in range(1, ranks + 1) if _is_even(hosts, ranks, other)]
        raise UserError(
            f"AT_ONCE={number}: {error}. AT_ONCE can be {' or '.join(able)} here"
            + (f", or {number} with NP={_rounded(ranks, number)}" if len(hosts) < 2 else "")
        ) from error


class _UnevenError(ValueError):
    """Why no equal groups can be made."""


def _is_even(hosts: Sequence[Host], ranks: int, number: int) -> bool:
    try:
        return bool(list(_groups(hosts, ranks, number)))
    except _UnevenError:
        return False


def _rounded(ranks: int, number: int) -> int:
    """Return the multiple of `number` that is not less than `ranks`."""
    return -(-ranks // number) * number


def _groups(hosts: Sequence[Host], ranks: int, number: int) -> Iterator[Group]:
    if ranks % number:
        raise _UnevenError(f"{ranks} ranks cannot be divided into {number} equal groups")
    if len(hosts) < 2:
        for part in range(number):
            yield Group(ranks // number, share=Share(part + 1, number))
        return
    slots = sum(host.slots for host in hosts)
    size, left = divmod(slots, number)
    if left:
        raise _UnevenError(f"the hosts have room for {slots} ranks, which is no multiple of {number}")
    for host in hosts:
        parts, left = divmod(host.slots, size)
        if parts and left:
            raise _UnevenError(
                f"the {host.slots} ranks of {host.name} are no multiple of the {size} of a group"
            )
        for part in range(parts):
            yield Group(ranks // number, (Host(host.name, size),), Share(part + 1, parts))
    for together in _packed([host for host in hosts if host.slots < size], size):
        yield Group(ranks // number, together)


def _packed(hosts: Sequence[Host], size: int) -> list[tuple[Host, ...]]:
    """Return groups of whole hosts with `size` slots each: the largest hosts first, each where there is room for it."""
    groups: list[tuple[Host, ...]] = []
    for host in sorted(hosts, key=lambda host: -host.slots):
        room = (i for i, some in enumerate(groups) if sum(one.slots for one in some) + host.slots <= size)
        place = next(room, None)
        if place is None:
            groups.append((host,))
        else:
            groups[place] += (host,)
    for some in groups:
        if sum(host.slots for host in some) != size:
            names = ", ".join(f"{host.name} ({host.slots})" for host in hosts)
            raise _UnevenError(
                f"{names} cannot be put together into groups of {size} ranks without dividing a host"
            )
    return groups
