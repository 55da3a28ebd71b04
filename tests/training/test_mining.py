"""Hard mining with a predictor that gets a patch right where its first pixel says so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samplers import Batch, PatchInfo
from tests.helpers.groups import Gathering, Member, on_members
from training.mining import HardMiner

SIZE = 4


class Marked:
    """A patch is easy where images[i, 0, 0, 0] is 1."""

    num_classes = 2

    def evaluate_batch(self, images: np.ndarray, labels: np.ndarray) -> tuple[None, np.ndarray]:
        easy = images[:, 0, 0, 0, None, None] == 1
        return None, np.where(easy, labels, 1 - labels)


def batches(*easy: str) -> Iterator[Batch]:
    """Batches of (tumour, other); E: easy, h: hard. One array for all of them, as the loader has it."""
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    for index, letters in enumerate(easy):
        images[:] = index
        images[:, 0, 0, 0] = [letter == "E" for letter in letters]
        labels = np.zeros((2, SIZE, SIZE), np.uint8)
        labels[0, :2] = 1
        patches = [PatchInfo(f"s{index}", 0, 0, SIZE, tumour) for tumour in (True, False)]
        yield Batch(index, images, labels, patches)


class Tally:
    """Counts what hard mining looks at and rejects."""

    def __init__(self) -> None:
        self.seen = self.rejected = 0

    def __call__(self, seen: int, rejected: int) -> None:
        self.seen += seen
        self.rejected += rejected


def slides(batch: Batch) -> list[str]:
    return [patch.slide for patch in batch.patches]


def test_easy_patches_are_replaced_by_hard_ones_of_their_kind():
    count = Tally()
    first, second = list(HardMiner(batches("Eh", "EE", "hE", "hh"), Marked(), 0.95, 3, count))
    assert slides(first) == ["s2", "s0"]
    assert [patch.tumour for patch in first.patches] == [True, False]
    assert first.images[0, 1, 1, 1] == 2  # the picture as well
    assert first.images[1, 1, 1, 1] == 0
    assert first.labels[0].any()
    assert not first.labels[1].any()
    assert (first.index, slides(second)) == (2, ["s3", "s3"])
    assert (count.seen, count.rejected) == (8, 4)


def test_after_the_last_try_what_is_easy_stays():
    miner = HardMiner(batches("EE", "EE", "EE", "hh"), Marked(), 0.95, 2, Tally())
    first, second = list(miner)
    assert slides(first) == ["s0", "s0"]
    assert (first.index, slides(second)) == (2, ["s3", "s3"])


def test_threshold_decides_what_is_easy():
    count = Tally()
    assert slides(next(iter(HardMiner(batches("hh", "EE"), Marked(), 0.0, 1, count)))) == ["s0", "s0"]
    assert (count.seen, count.rejected) == (4, 4)  # all are, from a mIoU of 0 on


def test_ranks_that_share_patches_find_the_same_ones_easy():
    """A patch is what its strips are together, although each of them alone would be easy on one rank only."""
    letters = ("Eh", "hE", "EE", "hh", "Eh", "hh")

    def mine(member: int, gathering: Gathering) -> list[list[str]]:
        # Rank 1 sees everything right: together they are as right as rank 0 is, at half the rate.
        own = letters if member == 0 else ["EE"] * len(letters)
        miner = HardMiner(batches(*own), Marked(), 0.8, 1, Tally(), Member(member, 2, gathering=gathering))
        return [slides(batch) for batch in miner]

    (first, second), _ = on_members(2, mine)
    assert first == second
    alone = [slides(batch) for batch in HardMiner(batches(*letters), Marked(), 0.8, 1, Tally())]
    assert first == alone
