"""Hands out batches, and copies them to the GPU while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from samplers import Batch
from utils.ranks.activity import Activity

Pixels: TypeAlias = "np.ndarray | tf.Tensor"


class Fed(NamedTuple):
    """A batch, and its images uint8 (B, H, W, 3) and labels uint8 (B, H, W) where the network takes them from."""

    batch: Batch
    images: Pixels
    labels: Pixels


class Feed:
    """Iterates over batches. With a GPU as `device`, `prepare` takes the next one and copies it there.

    It is called when a step has begun on the GPU, so that the copy takes no time of its own. On CPUs (None) a step has
    ended when the call returns, and a batch is used where it lies.
    """

    def __init__(
        self, batches: Iterable[Batch], device: str | None, activity: Activity | None = None
    ) -> None:
        self._batches = iter(batches)
        self._activity = activity or Activity()
        self._device = device
        self._next: Fed | None = None

    def __iter__(self) -> Iterator[Fed]:
        return self

    def __next__(self) -> Fed:
        fed, self._next = self._next, None
        return self._take() if fed is None else fed

    def prepare(self) -> None:
        if self._device is not None and self._next is None:
            with contextlib.suppress(StopIteration):  # the next `next` raises it again
                self._next = self._take()

    def _take(self) -> Fed:
        with self._activity.drawing():
            batch = next(self._batches)
        if self._device is None:
            return Fed(batch, batch.images, batch.labels)
        # The loader's memory is used again when the next batch is taken, before the step of this one has ended.
        batch = Batch(batch.index, batch.images.copy(), batch.labels.copy(), list(batch.patches))
        with tf.device(self._device):
            return Fed(batch, tf.constant(batch.images), tf.constant(batch.labels))
