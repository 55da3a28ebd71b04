"""What ranks tell each other, without TensorFlow: here one rank alone, `utils.ranks.world.World` for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from utils.cli import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process. A collective function is called by all ranks in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Collective: the values of all ranks, by rank, on every rank."""
        return [value]

    def broadcast(self, value: T) -> T:
        """Collective: rank 0's value on every rank."""
        return value

    def barrier(self) -> None:
        """Collective: returns when all ranks are here."""
        self.gather(None)

    def all_or_none(self, check: Callable[[], T]) -> T:
        """Collective: what `check` returns; when it fails on any rank, a UserError on every rank.

        A rank must not end alone over bad input: the others would wait for it, or be killed by the
        launcher before rank 0 has printed the message.
        """
        value, message = None, ""
        try:
            value = check()
        except (UserError, ValueError, OSError) as error:
            message = str(error)
        messages = dict.fromkeys(m for m in self.gather(message) if m)  # each once, by rank
        if messages:
            raise UserError("\n".join(messages))
        return value  # type: ignore[return-value]

    def on_rank_0(self, function: Callable[[], T]) -> T:
        """Collective: what `function` returns on rank 0, which alone calls it; fails on all as `all_or_none`."""
        return self.broadcast(self.all_or_none(lambda: function() if self.is_first else None))  # type: ignore[return-value]
