"""Where a layer stands in a network that runs on strips, and what every spatial form makes use of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from models import kernels
from models.spatial.exchange import sum_over, take_rows
from models.spatial.rows import Range, Strips
from utils.ranks.group import Group

Call = Callable[..., tf.Tensor]  # what a layer does with its inputs, as Keras defines it


@dataclass(frozen=True)
class Place:
    """A layer of a network whose feature maps are divided. Heights are those of the whole feature maps."""

    layer: keras.layers.Layer
    heights: tuple[int, ...]  # of its inputs
    height: int  # of its output
    strips: Strips
    group: Group

    @property
    def rows(self) -> Range:
        """Return the rows of the output that this rank has."""
        return self.strips.of(self.height)[self.group.rank]

    @property
    def divided(self) -> bool:
        """Return whether ranks have different rows of the (first) input."""
        return self.strips.divides(self.heights[0])

    def take(self, x: tf.Tensor, reads: Callable[[Range], Range], value: float = 0.0) -> tf.Tensor:
        """Collective: return the rows of the first input that this rank's output is made of: `reads(rows)`.

        Rows outside of the feature map are filled with `value`.
        """
        height = self.heights[0]
        need = [reads(rows) for rows in self.strips.of(self.height)]
        return take_rows(x, self.strips.of(height), need, height, self.group, self.layer.name, value)

    def sum(self, x: tf.Tensor, what: str) -> tf.Tensor:
        """Collective: return the sum over ranks of something computed from each rank's rows of the first input."""
        return sum_over(x, self.group, f"{self.layer.name}.{what}")

    def mean(self, x: tf.Tensor) -> tf.Tensor:
        """Collective: return the mean (C,) of all pixels of the first input `x` (B, rows, W, C), whole patches."""
        if not self.divided:
            return kernels.mean_of_rows(x)
        pixels = x.shape[0] * self.heights[0] * x.shape[2]
        rows = x.shape[0] * x.shape[1] * x.shape[2]
        return self.sum(kernels.mean_of_rows(x) * (rows / pixels), "mean")


@dataclass(frozen=True)
class Form:
    """The spatial form of a kind of layer.

    `height`: layer, heights of its inputs → height of its output, of whole feature maps; ValueError for a layer that
    has no spatial form. `call`: place, what Keras would call, inputs, training → this rank's rows of the output.
    """

    height: Callable[[Any, tuple[int, ...]], int]
    call: Callable[[Place, Call, Any, bool], tf.Tensor]
