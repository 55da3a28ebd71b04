"""Trains each case for some steps on fixed patches and writes the weights. Started on one or several ranks.

    python rank_weights.py OUT.npz CASE ...

A step's patches are the same for every number of ranks, which share them. OUT.npz has the variables of rank 0,
"<case>/<number>", and a JSON line on stdout tells for each case how many of them differ between ranks.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import zlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import tensorflow as tf

import models.from_options
import training.trainer
from models import efficientdet
from tests.helpers.toy_models import toy_efficientdet
from training.distributed_optimizer import optimizer_variables
from training.options import build_parser
from training.trainer import Trainer
from utils.ranks.world import World, init_world

STEPS, PATCHES = 3, 4
CASES = {
    "plain": [],
    "unwrapped": [],
    "frozen": [],
    # With the patches of each batch in another order, the sums are the same but for the CPU's rounding.
    "plain_reordered": [],
    "frozen_reordered": [],
    # Gradients rounded to float16 and nothing else, as --fp16_allreduce rounds them.
    "plain_rounded": [],
    "sync": ["--sync_batch_norm"],
    "recompute": ["--sync_batch_norm", "--recompute", "full"],
    "fp16": ["--sync_batch_norm", "--fp16_allreduce"],
    "accumulate": ["--accumulate_steps", "2"],
    "adasum": ["--adasum"],
    "float16": ["--mixed_precision", "float16"],
    # In float64 next to nothing is left of what differs by rounding.
    "plain_float64": [],
    "sync_float64": ["--sync_batch_norm"],
}


def patches(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    coarse = rng.integers(0, 255, (PATCHES, 16, 16, 3)).astype(np.uint8)
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return images, (images[..., 0] > 127).astype(np.uint8)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Make a `Trainer` within whose variables, activations, logits and gradients are float64."""

    def set_float64(_: str) -> None:
        tf.keras.mixed_precision.set_global_policy("float64")

    # With the pyramid from level 1 on, the head need not interpolate, which TensorFlow only does in float32.
    with (
        mock.patch.object(training.trainer, "set_precision", set_float64),
        mock.patch.object(models.from_options, "build_model", functools.partial(build, min_level=1)),
        mock.patch.object(efficientdet, "float32", lambda x, name: x),
        mock.patch.object(training.trainer, "make_loss", return_value=cross_entropy),
    ):
        yield


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the mean loss as the float32 that the trainer wants. Its gradient has the type of the logits."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)
    return tf.cast(tf.reduce_mean(losses), tf.float32)


def run(case: str, world: World) -> dict:
    options = build_parser().parse_args(CASES[case])
    options.seed += 100 * world.rank  # so each rank starts with other weights, unless they are broadcast
    wrap = World.wrap_optimizer
    if case == "unwrapped":
        World.wrap_optimizer = lambda self, optimizer, *_: optimizer
    with in_float64() if case.endswith("_float64") else contextlib.nullcontext():
        trainer = Trainer(options, 2, world)
    World.wrap_optimizer = wrap
    scale = getattr(trainer.optimizer, "_loss_scale", None)
    if case == "float16":
        # All ranks get rank 0's loss scale, as after a resume. With it gradients overflow, but not on rank 0.
        if world.is_first:
            scale.current_loss_scale.assign(2.0**100)
        # The graph has to be the same on both: Horovod knows tensors by the names that TensorFlow gives them.
        loss, factor = trainer.loss, 0.0 if world.is_first else 1.0
        trainer.loss = lambda labels, logits: factor * loss(labels, logits)
    if case == "plain_rounded":
        compute = trainer.optimizer._compute_gradients
        trainer.optimizer._compute_gradients = lambda *values, **named: [
            (tf.cast(tf.cast(gradient, tf.float16), tf.float32), variable)
            for gradient, variable in compute(*values, **named)
        ]
    trainer.synchronise()
    report: dict = {"start": [v.numpy() for v in trainer.model.variables]}
    frozen = case in ("frozen", "frozen_reordered", "accumulate")
    order = -1 if case.endswith("_reordered") else 1
    for step in range(STEPS):
        images, labels = patches(step)
        mine = slice(world.rank, None, world.size)
        images, labels = images[mine][::order], labels[mine][::order]
        for i in range(options.accumulate_steps):
            part = slice(i, None, options.accumulate_steps)
            loss = trainer.train_step(images[part], labels[part], 1e-3, step, frozen).loss
    trainer.average_statistics()
    variables = [*trainer.model.variables, *optimizer_variables(trainer.optimizer)]
    digests = world.gather([zlib.crc32(v.numpy().tobytes()) for v in variables])
    report["variables"] = len(digests[0])
    report["different"] = sum(len(set(values)) > 1 for values in zip(*digests))
    report["losses"] = world.gather(loss)
    report["scales"] = world.gather(float(scale()) if case == "float16" else 1.0)
    report["weights"] = [v.numpy() for v in trainer.model.variables]
    report["names"] = [v.name for v in trainer.model.variables]
    return report


def build(
    name: str,
    img_size: None,
    num_classes: int,
    bn_momentum: float = 0.9,
    batch_norm: type = tf.keras.layers.BatchNormalization,
    min_level: int = 3,
    **_: object,
) -> object:
    return toy_efficientdet(
        img_size, num_classes, fpn_min_level=min_level, bn_momentum=bn_momentum, batch_norm=batch_norm
    )


def main(out: str, *cases: str) -> None:
    models.from_options.build_model = build  # a small network, as its size does not matter
    world = init_world(True, alone=False)
    reports = {case: run(case, world) for case in cases}
    if world.is_first:
        arrays = {
            f"{case}/{kind}/{name}": value
            for case, report in reports.items()
            for kind in ("start", "weights")
            for name, value in zip(report["names"], report[kind])
        }
        np.savez(out, **arrays)
        shown = ("variables", "different", "losses", "scales")
        print(json.dumps({case: {k: report[k] for k in shown} for case, report in reports.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
