"""The optimizer of a run: Horovod's around Keras's, and what a checkpoint and a broadcast must hold of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from training.optimizers import make_optimizer
from utils.cli import UserError
from utils.ranks.world import World


def uses_adasum(options: argparse.Namespace, world: World) -> bool:
    """Return whether gradients are combined by Adasum: one rank has nothing to combine."""
    return bool(options.adasum) and world.size > 1


def distributed_optimizer(options: argparse.Namespace, world: World, variables: Sequence[tf.Variable]) -> Any:
    """Return the optimizer of the options, which reduces gradients over ranks, with its slots for `variables`.

    With `--adasum` on several ranks it reduces nothing: there the tape does (`World.adasum_tape`). UserError if Adasum
    cannot work with this number of ranks.
    """
    optimizer = make_optimizer(
        options.optimizer, options.learning_rate, options.weight_decay, options.clip_norm
    )
    adasum = uses_adasum(options, world)
    if adasum and world.size & (world.size - 1):
        raise UserError(f"--adasum needs 2, 4, 8, … ranks, but there are {world.size}")
    if not adasum:
        optimizer = world.wrap_optimizer(
            optimizer, variables, options.fp16_allreduce, options.accumulate_steps
        )
    if options.mixed_precision == "float16":
        # Around Horovod's: what overflows on one rank is infinite on all after the reduction, so all skip the update.
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    # The slots are made now: they are broadcast, and restored, before the first step.
    optimizer._create_all_weights(variables)
    return optimizer


def optimizer_variables(optimizer: Any) -> list[tf.Variable]:
    """Return Adam's moments and its count of updates; with float16 also the loss scale and its count."""
    variables = optimizer.variables  # a method in Keras, a list once Horovod has wrapped it
    found = list(variables() if callable(variables) else variables)
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        found += [optimizer._loss_scale.current_loss_scale, optimizer.dynamic_counter]
    return found


def count_updates(optimizer: Any) -> None:
    """Take a batch whose gradients only wait off the optimizer's iterations.

    Horovod counts batches there, but Adam's bias correction wants updates.
    """
    waits = optimizer._agg_helper.counter > 0
    optimizer.iterations.assign_sub(tf.cast(waits, tf.int64))


def update_variables(
    optimizer: Any,
    gradients: Sequence[tuple[tf.Tensor | None, tf.Variable]],
    accumulates: bool,
    *after: tf.Tensor,
) -> None:
    """Apply the gradients when all of them, and what else was reduced (`after`), are there.

    So the variables of a rank that waits for another one are those of the last update, all of them.
    """
    require_gradients(gradients)
    with tf.control_dependencies([*after, *(gradient for gradient, _ in gradients)]):
        optimizer.apply_gradients(gradients)
        if accumulates:
            count_updates(optimizer)


def require_gradients(gradients: Iterable[tuple[tf.Tensor | None, tf.Variable]]) -> None:
    """Raise RuntimeError if a variable has no gradient: Keras would go on, and never train it."""
    missing = [variable.name for gradient, variable in gradients if gradient is None]
    if missing:
        names = ", ".join(missing[:3]) + ", …" * (len(missing) > 3)
        raise RuntimeError(f"{len(missing)} variables have no gradient and would not be trained: {names}")
