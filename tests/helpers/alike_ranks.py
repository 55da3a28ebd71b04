"""Stands for several ranks in one process, for tests of what depends on their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from utils.ranks.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class AlikeRanks(World):
    """Rank 0 of `size` ranks that all do the same, without Horovod."""

    def gather(self, value: T) -> list[T]:
        return [value] * self.size

    def broadcast(self, value: T) -> T:
        return value

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array * self.size

    def mean_in_graph(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        pass

    def average_variables(self, variables: Sequence[Any]) -> None:
        pass
