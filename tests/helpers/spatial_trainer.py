"""Trains a network on strips, and one process that has the whole patches, and compares them. Started on several ranks.

    python spatial_trainer.py RANKS_PER_PATCH CASE ...

All is in float64. A JSON line on stdout has for each case the largest relative error of losses, weights and statistics,
the number of wrong counts and predicted classes, and how many weights, losses and names of collectives differ between
ranks.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

import models.from_options
import training.trainer
from tests.helpers.toy_models import toy_efficientdet
from training.options import build_parser
from training.trainer import Trainer
from utils.ranks.world import World, init_world

STEPS = 2
TINY = 1e-12  # biases before a batch norm stay 0 but for rounding
CASES = {
    "plain": [],
    "frozen": ["--loss", "dice", "--recompute", "full"],
}


def build(name: str, size: None, classes: int, bn_momentum: float, batch_norm: Any, **_: Any) -> keras.Model:
    """Stands for `models.build_model`: a thin EfficientDet that computes all in float64."""
    model = toy_efficientdet(size, classes, bn_momentum=bn_momentum, batch_norm=batch_norm)
    for layer in model.layers:
        layer._set_dtype_policy("float64")
    return model


def batch(index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one image and its label, of which a part is ignored."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 255, (1, size // 16, size // 16, 3)).astype(np.uint8)
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)
    labels = (images[..., 0] > 127).astype(np.uint8)
    labels[:, size // 3 :, : size // 2] = 255
    return images, labels


def train(case: str, world: World, size: int) -> dict[str, Any]:
    """Return what this rank has after some steps and one evaluation: losses, counts, classes, weights, collectives."""
    rows = slice(*world.group.strip(size).rows)
    options = build_parser().parse_args([*CASES[case], "--img_size", str(size), "--optimizer", "sgd"])
    trainer = Trainer(options, 2, world)
    loss = trainer.loss
    trainer.loss = lambda labels, logits: tf.cast(loss(labels, logits), tf.float32)
    trainer.synchronise()
    steps = []
    for index in range(STEPS):
        images, labels = (np.ascontiguousarray(x[:, rows]) for x in batch(index, size))
        if case == "frozen":
            trainer.update_precise_bn(images, 1 / (index + 1))
        steps.append(trainer.train_step(images, labels, 1e-2, index, case == "frozen"))
    trainer.average_statistics()
    counts, classes = trainer.evaluate_batch(images, labels)
    return {
        "losses": [*(step.loss for step in steps), counts[2]],
        "confusion": sum(step.counts[0] for step in steps) + counts[0],
        "histogram": sum(step.counts[1] for step in steps) + counts[1],
        "images": sum(step.counts[3] for step in steps) + counts[3],
        "classes": classes,
        "weights": {v.name: v.numpy() for v in trainer.model.variables},
        "collectives": collectives(trainer.train_graphs[case == "frozen"]),
    }


def collectives(graph: Any) -> list[str]:
    """Return the names by which Horovod knows the operations of a traced graph."""
    (traced,) = graph._list_all_concrete_functions()
    definition = traced.graph.as_graph_def()
    nodes = [*definition.node, *(node for f in definition.library.function for node in f.node_def)]
    found = [node for node in nodes if node.op.startswith("Horovod")]
    return sorted(
        node.name.rpartition("/")[2] if node.attr["ignore_name_scope"].b else node.name for node in found
    )


def compare(case: str, world: World) -> dict[str, float]:
    """Collective: return on rank 0 what differs between the ranks, and between all of them and one process."""
    size = math.lcm(128, world.group.size)
    ranks = world.gather(train(case, world, size))
    first = ranks[0]
    if not world.is_first:
        return {}
    alone = train(case, World(), size)
    whole = {key: sum(rank[key] for rank in ranks) for key in ("confusion", "histogram", "images")}
    classes = np.concatenate([rank["classes"] for rank in ranks], 1)
    return {
        "loss": float(np.max(np.abs(np.divide(first["losses"], alone["losses"]) - 1))),
        "weight": max(
            float(np.abs(value - alone["weights"][name]).max() / np.abs(alone["weights"][name]).max())
            for name, value in first["weights"].items()
            if np.abs(value).max() > TINY
        ),
        "wrong_counts": int(sum(np.sum(whole[key] != alone[key]) for key in whole)),
        "wrong_classes": int(np.sum(classes != alone["classes"])),
        "different_weights": sum(
            any(rank["weights"][name].tobytes() != value.tobytes() for rank in ranks)
            for name, value in first["weights"].items()
        ),
        "different_losses": sum(rank["losses"] != first["losses"] for rank in ranks),
        "different_collectives": sum(rank["collectives"] != first["collectives"] for rank in ranks),
        "collectives": len(first["collectives"]),
    }


def main(ranks_per_patch: str, *cases: str) -> None:
    """Print a line of JSON on rank 0."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    models.from_options.build_model = build
    training.trainer.set_precision = lambda _: keras.mixed_precision.set_global_policy("float64")
    world = init_world(True, False, int(ranks_per_patch))
    found = {case: compare(case, world) for case in cases}
    if world.is_first:
        print(json.dumps(found))
    world.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
