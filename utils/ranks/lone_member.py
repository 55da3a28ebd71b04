"""One rank of a group whose other ranks are not there: what it takes and what it would send can be measured alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from utils.ranks.group import Group
from utils.ranks.world import World


@dataclass(frozen=True)
class LoneMember(Group):
    """A member of a group that makes up what would come from the others, and notes what it would send to them.

    Its tensors have the shapes that they have among others, so a step takes the same memory and, but for the waiting,
    the same time. What it computes is of no use.
    """

    # Bytes to other ranks of every exchange, by its name, in the order in which they are traced.
    sent: defaultdict[str, list[int]] = field(
        default_factory=lambda: defaultdict(list), compare=False, repr=False
    )

    @classmethod
    def inside(cls, ranks_per_patch: int) -> LoneMember:
        """Return the member in the middle of a group, which has a neighbour on both sides if anyone has."""
        return cls((ranks_per_patch - 1) // 2, ranks_per_patch)

    def alltoall(self, x: tf.Tensor, sends: Sequence[int], receives: Sequence[int], name: str) -> tf.Tensor:
        row = x.dtype.size * x.shape[1:].num_elements()
        self.sent[name].append((sum(sends) - sends[self.rank]) * row)
        # Rows of its own stand for those that would come: they depend on `x`, or TensorFlow would compute them once.
        return tf.gather(x, np.arange(sum(receives)) % x.shape[0])


@dataclass(frozen=True)
class LoneWorld(World):
    """The world of a `LoneMember`: one process without Horovod. The member of a group of one has whole patches."""

    @property
    def group(self) -> LoneMember:
        return self.member

    member: LoneMember = field(default_factory=LoneMember)
