"""Becomes a program with a share of this host's cores and GPUs: python -m utils.ranks.host_share 2/4 PROGRAM OPTIONS

Several launchers beside each other on a host know nothing of each other: the ranks of each would count all of its cores
and take its first GPUs. So `launch` in utils/launch.sh starts each rank by this program where HOST_SHARE is set, here
as on other hosts. Ranks count their threads and samplers from the cores that are left to them. A launcher that binds
ranks by itself, as Intel MPI's does, binds those of each run to the same cores, of which each takes its share.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from utils.cli import UserError, report_user_error
from utils.ranks.gpu_driver import HIDDEN, ask_driver

T = TypeVar("T")
CPUS = Path("/sys/devices/system/cpu")


class Share(NamedTuple):
    """Part `part` (from 1 on) of `parts` equal ones."""

    part: int
    parts: int

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that a text such as "2/4" names. UserError: it names none."""
        part, _, parts = text.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise UserError(f"HOST_SHARE={text} is not PART/PARTS, such as 1/2 or 2/2")
        return cls(int(part), int(parts))

    def of(self, things: Sequence[T]) -> Sequence[T]:
        """Return this share of the things, of which the shares differ by one at most."""
        return things[(self.part - 1) * len(things) // self.parts : self.part * len(things) // self.parts]


def place_of(cpu: int) -> tuple[int, int]:
    """Return (package, core) of a CPU, as Linux numbers them; the hardware threads of one core have the same."""
    try:
        package, core = (
            int((CPUS / f"cpu{cpu}/topology" / name).read_text())
            for name in ("physical_package_id", "core_id")
        )
    except OSError:
        return 0, cpu
    return package, core


def cpus_of_share(
    share: Share, cpus: Collection[int], place: Callable[[int], tuple[int, int]] = place_of
) -> set[int]:
    """Return this share of the CPUs: whole cores that lie beside each other, or hardware threads if cores are too few.

    UserError: there are fewer CPUs than shares.
    """
    cores = defaultdict(list)
    for cpu in sorted(cpus):
        cores[place(cpu)].append(cpu)
    pieces = [cores[key] for key in sorted(cores)]
    if len(pieces) < share.parts:
        pieces = [[cpu] for piece in pieces for cpu in piece]
    if len(pieces) < share.parts:
        raise too_few(share, len(pieces), "cores")
    return {cpu for piece in share.of(pieces) for cpu in piece}


def gpus_of_share(share: Share, visible: str | None) -> str | None:
    """Return CUDA_VISIBLE_DEVICES for this share of the GPUs that are visible; None where there are none to divide.

    visible: the CUDA_VISIBLE_DEVICES of all shares, None if it is not set. UserError: fewer GPUs than shares.
    """
    if visible is not None and visible.strip() in HIDDEN:
        return visible
    names = ask_driver("index") if visible is None else [name.strip() for name in visible.split(",")]
    if names and len(names) < share.parts:
        raise too_few(share, len(names), "GPUs")
    return ",".join(share.of(names)) if names else None


def too_few(share: Share, found: int, what: str) -> UserError:
    return UserError(
        f"{share.parts} runs at once are to share {platform.node()}, which has {found} {what} for them: give "
        f"run_folds.sh a smaller AT_ONCE{', or --no_cuda' if what == 'GPUs' else ''}"
    )


def find_share(share: Share, no_cuda: bool) -> tuple[set[int], str | None]:
    """Return the CPUs of this share of what this process may use, and its CUDA_VISIBLE_DEVICES, None to leave it.

    UserError: there are too few.
    """
    gpus = None if no_cuda else gpus_of_share(share, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return cpus_of_share(share, os.sched_getaffinity(0)), gpus


def main(argv: Sequence[str]) -> int:
    try:
        cpus, gpus = find_share(Share.parse(argv[0]), no_cuda="--no_cuda" in argv)
    except UserError as error:
        return report_user_error(error, "host_share.py")
    os.sched_setaffinity(0, cpus)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.execv(argv[1], list(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
