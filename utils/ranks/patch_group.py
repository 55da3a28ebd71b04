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
    """The place of a rank: `member` of the `members` ranks of group `index`, of `count` groups."""

    index: int = 0
    count: int = 1
    member: int = 0
    members: int = 1

    @classmethod
    def of(cls, rank: int, size: int, ranks_per_patch: int) -> PatchGroup:
        """Return the place of `rank` of `size` ranks. UserError, with the numbers that work, if they do not divide."""
        if size % ranks_per_patch:
            fitting = [str(number) for number in range(1, size + 1) if size % number == 0]
            below = size // ranks_per_patch * ranks_per_patch
            others = [str(number) for number in (below, below + ranks_per_patch) if number]
            raise UserError(
                f"--ranks_per_patch {ranks_per_patch} does not divide the number of ranks, {size}: start "
                f"{' or '.join(others)} ranks, or take --ranks_per_patch {' or '.join(fitting)}"
            )
        index, member = divmod(rank, ranks_per_patch)
        return cls(index, size // ranks_per_patch, member, ranks_per_patch)

    @property
    def ranks(self) -> range:
        """Return the ranks of the group."""
        return range(self.index * self.members, (self.index + 1) * self.members)

    @property
    def is_first_member(self) -> bool:
        """Whether the rank is the one of its group that counts what the whole group has in common."""
        return self.member == 0

    def strip(self, height: int, unit: int = 1) -> Strip:
        """Return the rank's strip of patches of `height` rows. UserError as `strip_rows`."""
        return Strip(self.member, strip_rows(height, self.members, unit))


def strip_rows(height: int, ranks: int, unit: int = 1) -> tuple[Rows, ...]:
    """Return the rows of each rank's strip of a patch of `height` rows, from the top.

    Border k lies at k · height / ranks, rounded down to a multiple of `unit`, the largest stride of the model: so the
    strips of its feature maps have whole rows at every level. The strips are equal if ranks · unit divides the height.
    Otherwise they differ by one unit (and the last one has the rest if the height is no multiple of the unit).
    UserError, with the numbers that work, if a strip would have no row.
    """
    borders = [*(k * height // (ranks * unit) * unit for k in range(ranks)), height]
    rows = tuple(Rows(start, stop) for start, stop in pairwise(borders))
    if min(strip.height for strip in rows) <= 0:
        raise UserError(
            f"a patch of {height} rows has no {ranks} strips of {unit} rows or a multiple of it: take "
            f"--ranks_per_patch {max(1, height // unit)} or less, or --img_size {ranks * unit} or more"
        )
    return rows
