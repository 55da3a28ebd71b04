"""The weight of each class in the loss, as --class_weights or --pos_pixel_weight and --neg_pixel_weight say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from samplers import SamplerConfig, SlidePair, training_loader
from samplers.labels.label_map import IGNORED, class_names
from utils.cli import UserError

if TYPE_CHECKING:
    from utils.ranks.world import World

BALANCED = "balanced"
COUNTED_PATCHES = 128  # on all ranks together, for "balanced"


def class_weights(
    options: argparse.Namespace,
    num_classes: int,
    pairs: Sequence[SlidePair],
    config: SamplerConfig,
    world: World,
) -> list[float]:
    """Collective: return the weight of each class, the same on every rank."""
    if options.class_weights is None:
        return [options.neg_pixel_weight, *[options.pos_pixel_weight] * (num_classes - 1)]
    if options.class_weights != [BALANCED]:
        return parse_class_weights(options.class_weights, class_names(options.label_map, num_classes))
    return balanced_weights(world.sum(count_pixels(pairs, config, num_classes, world)))


def parse_class_weights(items: Sequence[str], names: Sequence[Sequence[str]]) -> list[float]:
    """Return the weights that `["Tumor:2", "0:0.5"]` describes; a class that is not named has weight 1.

    `names` are those of each class, which can also be named by its number. Raises UserError, which names the item.
    """
    numbers = {name: number for number, group in enumerate(names) for name in (*group, str(number))}
    weights: dict[int, float] = {}
    for item in items:
        name, _, text = item.rpartition(":")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            raise UserError(
                f"--class_weights: {item!r} is not NAME:WEIGHT with a weight of 0 or more, or {BALANCED}"
            )
        if name not in numbers:
            known = ", ".join("/".join(group) for group in names)
            raise UserError(f"--class_weights: {item!r}: there is no class {name!r}, the classes are {known}")
        if numbers[name] in weights:
            raise UserError(f"--class_weights: {item!r}: its class has a weight already")
        weights[numbers[name]] = weight
    found = [weights.get(number, 1.0) for number in range(len(names))]
    if not any(found):
        raise UserError("--class_weights are all 0: there is nothing to learn")
    return found


def balanced_weights(pixels: np.ndarray) -> list[float]:
    """Return weights with which all classes count alike in the loss, from their numbers of pixels (C,).

    Their mean over the pixels is 1, as of scikit-learn's "balanced". A class without pixels has the weight 1.
    """
    occurs = pixels > 0
    weights = np.ones(len(pixels))
    weights[occurs] = pixels.sum() / (occurs.sum() * pixels[occurs])
    return [float(weight) for weight in weights]


def count_pixels(
    pairs: Sequence[SlidePair], config: SamplerConfig, num_classes: int, world: World
) -> np.ndarray:
    """Collective: return the pixels of each class in this rank's first training patches, or strips of them: (C,).

    All ranks together look at COUNTED_PATCHES patches.
    What is counted are patches, not slides: --batch_tumor_ratio and the sampler decide how often a class is seen.
    """
    batches = max(1, COUNTED_PATCHES // (world.group.count * config.batch_size))
    pixels = np.zeros(IGNORED + 1)
    share = world.group.index, world.group.count
    with training_loader(pairs, config, *share, processes=0, gather=world.gather_in_group) as loader:
        for batch in islice(loader, batches):
            for label in batch.labels:
                pixels += np.bincount(label.ravel(), minlength=IGNORED + 1)
    return pixels[:num_classes]
