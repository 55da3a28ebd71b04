"""Which ranks share a patch (`--ranks_per_patch R`), and which rows of it each of them has. Pure functions of numbers.

R consecutive ranks are a group: ranks 0 to R - 1 are group 0, and so on. Each group draws patches of its own, and each
of its ranks has one strip of every patch, in the order of the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from utils.cli import UserError


class Rows(NamedTuple):
    """The rows `start` to `stop` of a patch, without `stop`."""

    start: int
    stop: int

    @property
    def height(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Strip:
    """The strip number `member` of those that a patch is cut into."""

    member: int
    strips: tuple[Rows, ...]

    @property
    def rows(self) -> Rows:
        return self.strips[self.member]

    @property
    def is_whole(self) -> bool:
        """Whether the strip is the whole patch."""
        return len(self.strips) == 1


@dataclass(frozen=True)
class PatchGroup:
    """The ranks that share a patch: this is `rank` of `size` of them, in the group `index` of `count`."""

    rank: int = 0
    size: int = 1
    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, rank: int, ranks: int, ranks_per_patch: int = 1) -> PatchGroup:
        """Return the place of `rank` of `ranks`. UserError, with the numbers that work, if they cannot be divided."""
        if ranks % ranks_per_patch:
            below = ranks // ranks_per_patch * ranks_per_patch
            others = " or ".join(str(number) for number in (below, below + ranks_per_patch) if number)
            fitting = " or ".join(str(number) for number in range(1, ranks + 1) if ranks % number == 0)
            raise UserError(
                f"--ranks_per_patch {ranks_per_patch} does not divide the number of ranks, which is {ranks}: start "
                f"{others} ranks with the launcher, or take --ranks_per_patch {fitting}"
            )
        return cls(rank % ranks_per_patch, ranks_per_patch, rank // ranks_per_patch, ranks // ranks_per_patch)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank of its group that counts what the group has in common."""
        return self.rank == 0

    def strip(self, height: int) -> Strip:
        """Return this rank's strip of patches with `height` rows."""
        return Strip(self.rank, strip_rows(height, self.size))


def strip_rows(height: int, ranks: int) -> tuple[Rows, ...]:
    """Return the rows of each rank's strip of a patch with `height` rows, from the top.

    Their heights differ by one row if `ranks` does not divide the height.
    """
    borders = [k * height // ranks for k in range(ranks + 1)]
    return tuple(Rows(start, stop) for start, stop in pairwise(borders))
