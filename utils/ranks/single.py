"""The collective functions for one rank alone, without TensorFlow; `utils.ranks.world.World` has them for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from utils.cli import UserError
from utils.ranks.activity import Activity
from utils.ranks.launcher import lonely_tasks, ways_to_start
from utils.ranks.patch_group import PatchGroup

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process. A collective function is called by all ranks in the same order."""

    rank: int = 0
    size: int = 1
    activity: Activity = field(default_factory=Activity, kw_only=True, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def group(self) -> PatchGroup:
        """Return the ranks that share this rank's patches: it has them for itself."""
        return PatchGroup.of(self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """Collective: return the values of all ranks, by rank, on every rank."""
        return [value]

    def gather_in_group(self, value: T) -> list[T]:
        """Collective in the group of ranks that share a patch: return the values of all of them, by rank."""
        return [value]

    def sum_in_group(self, array: np.ndarray) -> np.ndarray:
        """Collective in the group of ranks that share a patch: return the sum over them, of whole numbers."""
        return np.sum(self.gather_in_group(array), axis=0, dtype=array.dtype)

    def broadcast(self, value: T) -> T:
        """Collective: return rank 0's value on every rank."""
        return value

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Collective: return the sum over ranks, of the same shape and dtype (int64 or float64, for exact counts)."""
        return array

    def barrier(self) -> None:
        """Collective: returns when all ranks are here."""
        self.gather(None)

    def all_or_none(self, function: Callable[[], T]) -> T:
        """Collective: return what `function` returns here. UserError on every rank if it raises one on any rank.

        A rank must not end alone over bad input: the others would wait for it, or be killed by the launcher before
        rank 0 has printed the message. Every other exception is a fault of the program and ends this rank with its
        traceback; the launcher then ends the others.
        """
        value, message = None, ""
        try:
            value = function()
        except UserError as error:
            message = str(error)
        messages = dict.fromkeys(m for m in self.gather(message) if m)  # each once, by rank
        if messages:
            raise UserError("\n".join(messages))
        return value  # type: ignore[return-value]

    def on_rank_0(self, function: Callable[[], T]) -> T:
        """Collective: call `function` on rank 0 alone and return its value on every rank; fails as `all_or_none`."""
        return self.broadcast(self.all_or_none(lambda: function() if self.is_first else None))  # type: ignore[return-value]


ALONE = Ranks()


def require_company() -> None:
    """UserError if srun started several processes that do not know of each other: each would do all of the work."""
    tasks = lonely_tasks()
    if tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks that do not know of each other, so each of them would do all of the work and "
            f"write over what the others write. Start them {ways_to_start()}, as run_train.sh does (`sbatch "
            "run_train.sh`); or start one task"
        )
