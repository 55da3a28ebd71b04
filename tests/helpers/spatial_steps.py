"""Compares networks on several ranks with one process that has the whole patches. Started on several ranks.

    python spatial_steps.py RANKS_PER_PATCH CASE ...

A JSON line on stdout has for each case [error, variable] of the loss, of the worst gradient and of the worst moving
average, relative to the largest value in each; and the error of all gradients as one vector.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from dataclasses import dataclass, field
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
import tf_keras as keras

from models.layers import drawing
from models.spatial import rows
from models.spatial.network import Spatial
from tests.helpers.spatial_networks import NETWORKS, build, on_strips
from training.losses import make_loss
from utils.ranks.group import Group
from utils.ranks.patch_group import strip_rows
from utils.ranks.world import World, init_world

WEIGHTS = (0.5, 2.0, 1.5)
FLOOR = 1e-4  # of the largest gradient: a bias before a batch norm has a gradient of 0 but for rounding

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One comparison. `parts`: shares of the rows that ranks have, as in training if empty."""

    network: str
    height: int
    loss: str = "cross_entropy"
    recompute: str = "none"
    training: bool = True
    policy: str = "float64"
    parts: tuple[int, ...] = ()
    lowest: int = rows.LOWEST
    options: dict[str, Any] = field(default_factory=dict)

    def strips(self, ranks: int) -> rows.Strips:
        """Return the strips of the patch."""
        if not self.parts:
            return rows.Strips(strip_rows(self.height, ranks), self.lowest)
        parts = np.cumsum([0, *self.parts[:ranks]])
        bounds = [int(self.height * part // parts[-1]) for part in parts]
        return rows.Strips(tuple(itertools.pairwise(bounds)), self.lowest)


def step(case: Case, model: keras.Model, spatial: Spatial, images: np.ndarray, labels: np.ndarray) -> Values:
    """Return loss, gradients and moving averages after one step; the model stays as it was."""
    network = on_strips(case.network, model, case.recompute, spatial)
    loss_of = make_loss(case.loss, () if case.loss == "dice" else WEIGHTS, spatial.sum)

    @tf.function(autograph=False)
    def graph(images: tf.Tensor, labels: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, drawing(tf.constant([3, 4])):
            loss = loss_of(labels, network(images, case.training))
        return loss, tape.gradient(loss, model.trainable_variables)

    before = model.get_weights()
    loss, gradients = graph(tf.constant(images), tf.constant(labels))
    found = {v.name: g.numpy() for v, g in zip(model.trainable_variables, gradients)}
    found |= {v.name: v.numpy() for v in model.non_trainable_variables}
    model.set_weights(before)
    return found | {"loss": loss.numpy()}


def patches(case: Case, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two images uint8 of a group, and labels of three classes, of which a part is ignored."""
    rng, width = np.random.default_rng(group), NETWORKS[case.network][1]
    images = rng.integers(0, 256, (2, case.height, width, 3), dtype=np.uint8)
    labels = (images[..., 0] // 86).astype(np.uint8)
    labels[0, case.height // 3 :, : width // 2] = 255
    return images, labels


def mean_over_ranks(values: Values) -> Values:
    return {
        name: hvd.allreduce(tf.constant(value), op=hvd.Average, name=f"mean{i}").numpy()
        for i, (name, value) in enumerate(values.items())
    }


def compare(case: Case, world: World) -> dict[str, tuple[float, str]]:
    """Collective: return the errors of a case."""
    group, model = world.group, build(case.network, case.policy, **case.options)
    images, labels = patches(case, group.index)
    strips = case.strips(group.size)
    mine = slice(*strips.image[group.rank])
    found = mean_over_ranks(
        step(case, model, Spatial(model, strips, group), images[:, mine], labels[:, mine])
    )
    whole = Spatial(model, rows.Strips(((0, case.height),)), Group())
    wanted = {name: np.zeros_like(value) for name, value in found.items()}
    if group.rank == 0:
        wanted = {n: v * group.size for n, v in step(case, model, whole, images, labels).items()}
    wanted = mean_over_ranks(wanted)
    return errors(found, wanted)


def errors(found: Values, wanted: Values) -> dict[str, tuple[float, str]]:
    worst: dict[str, tuple[float, str]] = {}
    kinds = {n: "loss" if n == "loss" else "average" if "moving_" in n else "gradient" for n in wanted}
    largest = max(np.abs(v).max() for n, v in wanted.items() if kinds[n] == "gradient")
    for name, value in wanted.items():
        kind = kinds[name]
        scale = max(np.abs(value).max(), FLOOR * largest if kind == "gradient" else 0)
        error = float(np.abs(found[name] - value).max() / scale)
        if not error <= worst.get(kind, (-1, ""))[0]:  # a NaN is worst
            worst[kind] = (error, name)
    gradients = [name for name, kind in kinds.items() if kind == "gradient"]
    a, b = (np.concatenate([np.ravel(values[name]) for name in gradients]) for values in (found, wanted))
    return worst | {"all_gradients": (float(np.linalg.norm(a - b) / np.linalg.norm(b)), "")}


def main(ranks_per_patch: str, *cases: str) -> None:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    world = init_world(True, False, int(ranks_per_patch))
    found = {case: compare(CASES[case], world) for case in cases}
    if world.is_first:
        print(json.dumps(found))


CASES = {
    "every_layer": Case("every_layer", 96),
    "focal": Case("every_layer", 96, loss="focal"),
    "dice": Case("every_layer", 96, loss="dice"),
    "frozen": Case("every_layer", 96, training=False),
    "blocks": Case("every_layer", 96, recompute="blocks"),
    "full": Case("every_layer", 96, recompute="full"),
    "uneven": Case("every_layer", 96, parts=(3, 2, 4, 3)),
    "odd": Case("every_layer", 112, lowest=1),  # strips of an odd number of rows, lower than halos
    "bfloat16": Case("every_layer", 96, policy="mixed_bfloat16"),
    "float16": Case("every_layer", 96, policy="mixed_float16"),
    "float32": Case("every_layer", 96, policy="float32"),
    "p1": Case("effdet", 128, options={"fpn_min_level": 1}),
    "p2": Case("effdet", 256, options={"fpn_min_level": 2}),
    "p3": Case("effdet", 128, recompute="blocks", options={"fpn_min_level": 3}),
    "stride16": Case("deeplab", 128),
    "stride8": Case("deeplab", 128, recompute="blocks", options={"output_stride": 8}),
    # 1/16 has 26 rows and 1/8 has 51: the largest rates of ASPP, 18 and 36, reach over more than one neighbour.
    "low16": Case("deeplab", 401),
    "low8": Case("deeplab", 401, options={"output_stride": 8}),
    "d0_p1": Case("effdetd0", 256, options={"fpn_min_level": 1}),
    "d0_p3": Case("effdetd0", 256, options={"fpn_min_level": 3}),
    # About the lowest patches that the largest rates of ASPP do not reach out of on both sides of each row.
    "deeplab16": Case("real_deeplab", 305),
    "deeplab8": Case("real_deeplab", 305, recompute="full", options={"output_stride": 8}),
}


if __name__ == "__main__":
    main(*sys.argv[1:])
