"""Batches of a sampler, filled in this process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samplers import SAMPLERS, PatchInfo, SamplerConfig, SlidePair


def filled_batches(
    pairs: Sequence[SlidePair], config: SamplerConfig, count: int, rank: int = 0, size: int = 1
) -> list[tuple[np.ndarray, np.ndarray, list[PatchInfo]]]:
    """Return images, labels and patches of the first batches of the config's sampler. No slide may fail."""
    sampler = SAMPLERS[config.sampler](pairs, config, rank, size)
    result = []
    for index in range(count):
        images = np.empty((config.batch_size, config.img_size, config.img_size, 3), np.uint8)
        labels = np.empty(images.shape[:3], np.uint8)
        filled = sampler.fill(index, images, labels)
        assert not filled.failed
        result.append((images, labels, filled.patches))
    return result
