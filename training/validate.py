"""Validates in inference mode, each rank its share of the patches. Scores are over all pixels and by slide."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from samplers import Loader
from samplers.pairs.names import slide_of_patch
from training.feed import Feed
from training.metrics import Counts, iou, mean_iou, patch_confusions
from utils.pictures import panel, small_strip
from utils.ranks.single import Ranks

if TYPE_CHECKING:
    from training.trainer import Trainer

SHOWN = 4  # patches of each kind


@dataclass(order=True)
class Shown:
    """A validation patch that is shown. Ordered by `key`, then by where it is."""

    key: float
    slide: str
    x_l0: int
    y_l0: int
    miou: float = field(compare=False)
    picture: np.ndarray = field(compare=False)  # uint8 RGB, see pictures.panel


@dataclass
class Validation:
    """The result of a validation on all ranks. `slides`: confusion matrix (C, C) by slide."""

    counts: Counts
    seconds: float
    wait: float  # part of the time, of the rank that waited longest
    bad_slides: int  # that became unreadable
    slides: dict[str, np.ndarray]
    mixed: list[Shown]  # with most of both, tumour and other
    worst: list[Shown]
    best: list[Shown]

    def values(self) -> dict[str, Any]:
        """Return the values for metrics.jsonl."""
        return {
            **self.counts.summary(),
            "seconds": self.seconds,
            "images_per_second": self.counts.images / self.seconds,
            "sampler_wait": self.wait,
            "bad_slides": self.bad_slides,
            "learning_rate": None,
            "slides": {name: slide_values(self.slides[name]) for name in sorted(self.slides)},
        }


def slide_values(confusion: np.ndarray) -> dict[str, float | int | None]:
    """Return a slide's mIoU, Dice of class 1 (None if it is neither labelled nor predicted) and number of pixels."""
    tumour = float(iou(confusion)[1])
    dice = None if np.isnan(tumour) else 2 * tumour / (1 + tumour)
    return {"miou": mean_iou(confusion), "dice": dice, "pixels": int(confusion.sum())}


class _Top:
    """Keeps the patches with the largest keys."""

    def __init__(self) -> None:
        self.items: list[Shown] = []

    def wants(self, key: float) -> bool:
        return len(self.items) < SHOWN or key > self.items[-1].key

    def add(self, item: Shown) -> None:
        self.items = heapq.nlargest(SHOWN, [*self.items, item])


def _panel(world: Ranks, image: np.ndarray, label: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Collective in the group: return the panel of a whole patch, of which each of its ranks has a strip."""
    if world.group.size == 1:
        return panel(image, label, classes)
    strips = world.gather_in_group(small_strip(image, label, classes))
    image, label, classes = (np.concatenate(parts) for parts in zip(*strips))
    return panel(image, label, classes)


def validate(
    trainer: Trainer, loader: Loader, progress: Callable[[int], None] = lambda images: None
) -> Validation:
    """Collective: validate the model; `progress` is called after each batch with this rank's images so far."""
    start, wait = time.perf_counter(), loader.wait_seconds
    trainer.average_statistics()  # Horovod
    counts, world = Counts(trainer.num_classes), trainer.world
    slides: dict[str, Any] = {}  # confusion matrix by slide
    tops = {"mixed": _Top(), "worst": _Top(), "best": _Top()}
    feed = Feed(loader, trainer.gpu, world.activity)
    for batch, images, labels in feed:
        batch_counts, classes = trainer.evaluate_batch(images, labels, feed.prepare)
        counts.add(*batch_counts)
        progress(counts.images)
        confusions = patch_confusions(batch.labels, classes, trainer.num_classes)
        # Horovod: ranks that share patches have counted their strips.
        whole = world.sum_in_group(np.stack(confusions))
        for i, (patch, part, confusion) in enumerate(zip(batch.patches, confusions, whole)):
            name = slide_of_patch(patch.slide) or patch.slide
            slides[name] = slides.get(name, 0) + part
            known = int(confusion.sum())
            if not known:
                continue  # the thumbnail showed something that is known, but the patch has no pixel of it
            score = mean_iou(confusion) or 0.0
            tumour = float(confusion[1:].sum() / known)
            keys = {"mixed": tumour * (1 - tumour), "worst": -score}
            if patch.tumour:  # a patch without is right all too easily
                keys["best"] = score
            wanted = [kind for kind, key in keys.items() if tops[kind].wants(key)]
            if wanted:
                picture = _panel(world, batch.images[i], batch.labels[i], classes[i])
                for kind in wanted:
                    where = patch.slide, patch.x_l0, patch.y_l0
                    tops[kind].add(Shown(keys[kind], *where, score, picture))
    seconds = time.perf_counter() - start
    if not world.group.is_first:
        tops = {kind: _Top() for kind in tops}  # all ranks of a group have the same ones
    mine = seconds, loader.wait_seconds - wait, set(loader.dropped), slides, tops
    times, waits, dropped, by_slide, by_kind = zip(*world.gather(mine))
    seconds = max(times)
    merged: dict[str, np.ndarray] = {}
    for name, confusion in (item for part in by_slide for item in part.items()):
        merged[name] = merged.get(name, 0) + confusion
    shown = {
        kind: heapq.nlargest(SHOWN, [item for part in by_kind for item in part[kind].items]) for kind in tops
    }
    return Validation(
        counts.summed(world), seconds, max(waits) / seconds, len(set.union(*dropped)), merged, **shown
    )
