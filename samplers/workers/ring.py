"""The memory that a worker process shares with its consumer, a ring of batches, and the setup of the worker.

The memory is an anonymous file (memfd) that both map. It has no name, so that nothing is left behind after a kill -9,
and it is not in /dev/shm, which containers limit to 64 MB.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from samplers.agreement import Sampler

MAX_SLOTS = 4
MAX_BYTES = 1 << 30  # of all rings of a process; but each worker has at least two slots, however large

# A batch system sends these to every process of a job. The consumer decides what to do; a worker ends after it.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True)
class Setup:
    """The setup of a worker. make_sampler is pickled, so it must be a function or class that can be imported.

    height is that of a rank's strip of a patch.
    """

    make_sampler: Callable[[], Sampler]
    batch_size: int
    img_size: int
    height: int
    slots: int
    step: int  # the number of workers


def batch_bytes(batch_size: int, img_size: int, height: int | None = None) -> int:
    """Return the bytes of a batch of patches, or of strips of them of `height` rows."""
    # Three bytes per pixel for the image, one for the label.
    return batch_size * (height or img_size) * img_size * 4


def slot_count(batch_size: int, img_size: int, processes: int, height: int | None = None) -> int:
    """Return the slots per ring: one that the consumer holds and one to fill, more if batches are small."""
    in_use = processes * batch_bytes(batch_size, img_size, height)
    return int(np.clip(MAX_BYTES // in_use, 2, MAX_SLOTS))


def create(batch_size: int, img_size: int, slots: int, height: int | None = None) -> int:
    """Return the file descriptor of a new ring. Raises OSError if the system does not provide it."""
    descriptor = os.memfd_create("sampler_ring")
    os.ftruncate(descriptor, slots * batch_bytes(batch_size, img_size, height))
    return descriptor


def views(
    descriptor: int, batch_size: int, img_size: int, slots: int, height: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Map the ring. Return images (B, H, W, 3) and labels (B, H, W), uint8, of each slot."""
    each = batch_bytes(batch_size, img_size, height)
    shared = mmap.mmap(descriptor, slots * each)
    shape = (batch_size, height or img_size, img_size)
    result = []
    for start in range(0, slots * each, each):
        images = np.frombuffer(shared, np.uint8, each // 4 * 3, start)
        labels = np.frombuffer(shared, np.uint8, each // 4, start + each // 4 * 3)
        result.append((images.reshape(*shape, 3), labels.reshape(shape)))
    return result
