"""Batches are handed out in their order, whether the next one is taken ahead or not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from samplers import Batch
from training.feed import Feed


def batches(number: int) -> Iterator[Batch]:
    """As a loader that uses its memory again for each batch."""
    images, labels = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8)
    for index in range(number):
        images[:], labels[:] = index, index + 100
        yield Batch(index, images, labels, [])


@pytest.mark.parametrize("prepared", [set(), {0, 1, 2, 3}, {1, 3}])
@pytest.mark.parametrize("device", [None, "CPU:0"])
def test_batches_keep_their_order_and_what_is_in_them(device: str | None, prepared: set[int]) -> None:
    feed = Feed(batches(4), device)
    seen = []
    for batch, images, labels in feed:
        if batch.index in prepared:
            feed.prepare()  # twice is once
            feed.prepare()
        seen.append(batch.index)
        for of_images, of_labels in ((images, labels), (batch.images, batch.labels)):
            assert np.all(np.asarray(of_images) == batch.index)
            assert np.all(np.asarray(of_labels) == batch.index + 100)
        assert tf.is_tensor(images) == tf.is_tensor(labels) == (device is not None)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(StopIteration):
        next(feed)


def test_only_with_a_gpu_the_next_batch_is_taken_ahead() -> None:
    for device, taken in ((None, 1), ("CPU:0", 2)):
        source = batches(3)
        feed = Feed(source, device)
        next(feed)
        feed.prepare()
        assert next(source).index == taken
