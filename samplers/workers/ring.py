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

from samplers.patches import Sampler

MAX_SLOTS = 4
MAX_BYTES = 1 << 30  # of all rings of a process; but each worker has at least two slots, however large

# A batch system sends these to every process of a job. The consumer decides what to do; a worker ends after it.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True)
class Setup:
    """The setup of a worker. make_sampler is pickled, so it must be a function or class that can be imported."""

    make_sampler: Callable[[], Sampler]
    batch_size: int
    img_size: int
    slots: int
    step: int  # the number of workers


def batch_bytes(batch_size: int, img_size: int) -> int:
    return batch_size * img_size * img_size * 4  # three bytes per pixel for the image, one for the label


def slot_count(batch_size: int, img_size: int, processes: int) -> int:
    """Return the slots per ring: one that the consumer holds and one to fill, more if batches are small."""
    return int(np.clip(MAX_BYTES // (processes * batch_bytes(batch_size, img_size)), 2, MAX_SLOTS))


def create(batch_size: int, img_size: int, slots: int) -> int:
    """Return the file descriptor of a new ring. Raises OSError if the system does not provide it."""
    descriptor = os.memfd_create("sampler_ring")
    os.ftruncate(descriptor, slots * batch_bytes(batch_size, img_size))
    return descriptor


def views(descriptor: int, batch_size: int, img_size: int, slots: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Map the ring. Return images (B, H, W, 3) and labels (B, H, W), uint8, of each slot."""
    shared = mmap.mmap(descriptor, slots * batch_bytes(batch_size, img_size))
    pixels = batch_size * img_size * img_size
    result = []
    for slot in range(slots):
        start = slot * batch_bytes(batch_size, img_size)
        images = np.frombuffer(shared, np.uint8, 3 * pixels, start)
        labels = np.frombuffer(shared, np.uint8, pixels, start + 3 * pixels)
        result.append(
            (
                images.reshape(batch_size, img_size, img_size, 3),
                labels.reshape(batch_size, img_size, img_size),
            )
        )
    return result
