"""Samplers without slides, for the tests of the loader. A worker imports them from here."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from samplers import PatchInfo
from samplers.agreement import NO_RULING, Failure, Filled, Ruling


class Numbers:
    """Batch b holds the value b in every pixel. If `slow`, batches of odd number take a random time."""

    def __init__(self, slow: bool = False, last: int = 10**9) -> None:
        self.slow, self.last = slow, last
        self.dropped: dict[str, int] = {}

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        if self.slow and index % 2:
            time.sleep(float(np.random.default_rng(index).uniform(0, 0.05)))
        images[:], labels[:] = index % 256, index % 7
        count = 1 if index == self.last else len(images)
        return Filled([PatchInfo(f"slide{index}", index, 0, 8, True)] * count)

    def drop(self, slide: str, index: int) -> None:
        self.dropped[slide] = index


class Failing(Numbers):
    """Raises an exception at batch 3, as a fault of the program would."""

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        if index == 3:
            raise ZeroDivisionError("a bug in a sampler")
        return super().fill(index, images, labels)


class Deadly(Numbers):
    """Crashes at batch 3, as a fault of a C library would."""

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        if index == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().fill(index, images, labels)


class Unreadable(Numbers):
    """Batch b says that slide b could not be read, for b < 3; y_l0 counts the slides dropped by now."""

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        images[:] = labels[:] = 0
        dropped = sum(first <= index for first in self.dropped.values())
        failed = [Failure(f"bad{index}", "torn")] if index < 3 else []
        return Filled([PatchInfo("s", index, dropped, 8, True)] * len(images), failed)


class Counting(Numbers):
    """Has in x_l0 how many batches this object filled before."""

    filled = 0

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        self.filled += 1
        images[:] = labels[:] = index
        return Filled([PatchInfo("s", self.filled - 1, 0, 8, True)] * len(images))


class Unstartable(Numbers):
    def __init__(self) -> None:
        raise OSError("no licence")
