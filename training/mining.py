"""Hard mining: patches that the current model gets right are replaced by new draws before it trains on a batch.

Each rank mines alone, in inference mode and without gradients: no collective, so no rank waits for another. Ranks that
share their patches mine together, as a patch is easy or hard as a whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from samplers import Batch
from training.metrics import mean_iou, patch_confusions
from utils.ranks.single import Ranks


class Predictor(Protocol):
    """Scores patches, as `training.trainer.Trainer` does."""

    num_classes: int

    def evaluate_batch(self, images: np.ndarray, labels: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return counts, and classes uint8 (B, H, W) in inference mode, of uint8 images (B, H, W, 3)."""


@dataclass
class HardMiner:
    """Iterates over mined batches; `count` is told of each look how many patches it saw and rejected.

    A patch is easy from a mIoU of `threshold` on. In at most `tries` rounds the easy patches of a batch are
    replaced by hard ones of the next batches, tumour by tumour and other by other, so that the batch keeps its
    size and its tumour ratio; then what is left stays as it is. Collective in a group of ranks that share patches.
    """

    batches: Iterator[Batch]
    predictor: Predictor
    threshold: float
    tries: int
    count: Callable[[int, int], None]
    world: Ranks = field(default_factory=Ranks)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            # A copy: the loader's memory is used again for the next batch.
            yield self._mined(
                Batch(batch.index, batch.images.copy(), batch.labels.copy(), list(batch.patches))
            )

    def _mined(self, batch: Batch) -> Batch:
        easy = self._easy(batch)
        for _ in range(self.tries):
            if not easy.any():
                break
            other = next(self.batches)
            batch.index = other.index  # a run that goes on begins after it
            hard = ~self._easy(other)
            for slot in np.flatnonzero(easy):
                same = [
                    i for i in np.flatnonzero(hard) if other.patches[i].tumour == batch.patches[slot].tumour
                ]
                if same:
                    batch.images[slot], batch.labels[slot] = other.images[same[0]], other.labels[same[0]]
                    batch.patches[slot] = other.patches[same[0]]
                    easy[slot] = hard[same[0]] = False
        return batch

    def _easy(self, batch: Batch) -> np.ndarray:
        """Return which patches of a batch are easy: bool (B,)."""
        _, classes = self.predictor.evaluate_batch(batch.images, batch.labels)
        confusions = np.stack(patch_confusions(batch.labels, classes, self.predictor.num_classes))
        confusions = self.world.sum_in_group(confusions)  # Horovod: of whole patches
        easy = np.array([(mean_iou(confusion) or 0.0) >= self.threshold for confusion in confusions])
        self.count(len(easy), int(easy.sum()))
        return easy


def mined(
    batches: Iterator[Batch],
    predictor: Predictor,
    options: argparse.Namespace,
    world: Ranks,
    count: Callable[[int, int], None],
) -> Iterator[Batch]:
    """Return `batches` as `--hard_mining` and the options that go with it say."""
    threshold, tries = options.hard_mining_threshold, options.hard_mining_tries
    return iter(HardMiner(batches, predictor, threshold, tries, count, world))
