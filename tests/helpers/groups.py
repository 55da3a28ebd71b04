"""The ranks of a group in one process: threads whose `gather` waits for all of them, as Horovod's does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from samplers import Batch, Loader, SamplerConfig, SlidePair, training_loader, validation_loader
from utils.ranks.patch_group import PatchGroup
from utils.ranks.single import Ranks

T = TypeVar("T")
TIMEOUT = 120  # seconds; a rank that waits for the others longer is a rank that hangs


class Gathering:
    """`gather(member, value)` returns the values of all members, and counts how often all of them have met."""

    def __init__(self, members: int) -> None:
        self._values: list[Any] = [None] * members
        self._barrier = threading.Barrier(members, timeout=TIMEOUT)
        self.meetings = 0

    def gather(self, member: int, value: T) -> list[T]:
        self._values[member] = value
        self._barrier.wait()
        values = list(self._values)
        if self._barrier.wait() == 0:
            self.meetings += 1
        return values

    def abort(self) -> None:
        self._barrier.abort()


def on_members(members: int, function: Callable[[int, Gathering], T]) -> tuple[list[T], Gathering]:
    """Call `function(member, gathering)` for all members at once. Return what they return, and the gathering."""
    gathering = Gathering(members)

    def call(member: int) -> T:
        try:
            return function(member, gathering)
        except BaseException:
            time.sleep(1)  # until the others have left the meeting that this one has left
            gathering.abort()
            raise

    with ThreadPoolExecutor(members) as pool:
        futures = [pool.submit(call, member) for member in range(members)]
        errors = [future.exception() for future in futures]
        for error in sorted(
            (e for e in errors if e), key=lambda e: isinstance(e, threading.BrokenBarrierError)
        ):
            raise error
        return [future.result() for future in futures], gathering


@dataclass(frozen=True)
class Member(Ranks):
    """One of the ranks of a group that share all patches, in `on_members`."""

    gathering: Any = None

    @property
    def group(self) -> PatchGroup:
        return PatchGroup.of(self.rank, self.size, self.size)

    def gather(self, value: T) -> list[T]:
        return self.gathering.gather(self.rank, value)

    gather_in_group = gather

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]

    def sum(self, array: np.ndarray) -> np.ndarray:
        return np.sum(self.gather(array), axis=0, dtype=array.dtype)


def copy_of(batch: Batch) -> Batch:
    return Batch(batch.index, batch.images.copy(), batch.labels.copy(), list(batch.patches))


def group_batches(
    pairs: Sequence[SlidePair],
    config: SamplerConfig,
    ranks_per_patch: int,
    count: int | None,
    group: int = 0,
    groups: int = 1,
    processes: int = 0,
    start: int = 0,
    opened: Callable[[int, Loader], None] = lambda member, loader: None,
) -> tuple[list[list[Batch]], Gathering]:
    """Return the batches of each rank of a group, and how they met. `count` None means the validation patches.

    `opened` is called with the loader of each rank before and after the iteration.
    """

    def batches(member: int, gathering: Gathering) -> list[Batch]:
        place = PatchGroup(member, ranks_per_patch, group, groups)
        mine = replace(config, strip=place.strip(config.img_size))

        def gather(value: Any) -> list[Any]:
            return gathering.gather(member, value)

        loader = (
            validation_loader(pairs, mine, group, groups, processes, gather)
            if count is None
            else training_loader(pairs, mine, group, groups, processes, start, gather=gather)
        )
        with loader:
            opened(member, loader)
            found = [copy_of(batch) for batch in islice(loader, count)]
            opened(member, loader)
            return found

    return on_members(ranks_per_patch, batches)


def joined(of_ranks: Sequence[Sequence[Batch]]) -> list[Batch]:
    """Return the whole batches of the strips that the ranks of a group have of them."""
    whole = []
    for strips in zip(*of_ranks):
        first = strips[0]
        assert all(strip.patches == first.patches and strip.index == first.index for strip in strips)
        images = np.concatenate([strip.images for strip in strips], axis=1)
        labels = np.concatenate([strip.labels for strip in strips], axis=1)
        whole.append(Batch(first.index, images, labels, first.patches))
    return whole


def assert_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    """Check that two lists of batches have the same patches and the same bits."""
    assert len(found) == len(expected)
    for batch, other in zip(found, expected):
        assert batch.index == other.index
        assert batch.patches == other.patches
        np.testing.assert_array_equal(batch.images, other.images)
        np.testing.assert_array_equal(batch.labels, other.labels)
