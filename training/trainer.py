"""The model, its optimizer and the two graph functions of the loop: one training step, one evaluation step."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models import build_model, load_weights, normalise, serving_model, training_network
from models.layers import drawing
from training.checkpoint import restore_checkpoint
from training.losses import make_loss
from training.metrics import Counts, strip_counts
from training.optimizers import make_optimizer
from training.precise_bn import calibrate
from utils.cli import UserError
from utils.ranks.world import World


class StepResult(NamedTuple):
    """Of one training step: the mean loss and the stop votes over all ranks, this rank's loss and counts."""

    loss: float
    stop: bool
    counts: tuple[np.ndarray, np.ndarray, float, int]


class Trainer:
    """Owns the variables. All ranks build it alike and call its collective methods in the same order."""

    def __init__(self, options: argparse.Namespace, num_classes: int, world: World) -> None:
        self.world = world
        self.model_name = options.model
        self.num_classes = num_classes
        self.seed = options.seed
        tf.keras.utils.set_random_seed(options.seed)
        if options.deterministic:
            tf.config.experimental.enable_op_determinism()
        policy = options.mixed_precision
        tf.keras.mixed_precision.set_global_policy(policy if policy == "float32" else f"mixed_{policy}")
        self.model = build_model(
            options.model,
            None,
            num_classes,
            fpn_min_level=options.fpn_min_level,
            fpn_cells=options.fpn_cells,
            output_stride=options.output_stride,
            bn_momentum=options.bn_momentum,
            batch_norm=world.batch_norm(options.sync_batch_norm),
        )
        self.network = training_network(options.model, self.model, options.recompute)
        self.loss = make_loss(options.loss, options.pos_pixel_weight, options.neg_pixel_weight)
        # Horovod: the wrapped optimizer reduces the gradients over ranks.
        self.optimizer = make_optimizer(
            options.optimizer, options.learning_rate, options.weight_decay, options.clip_norm
        )
        self.accumulates = options.accumulate_steps > 1
        self.adasum, self.fp16_allreduce = options.adasum and world.size > 1, options.fp16_allreduce
        if self.adasum and world.size & (world.size - 1):
            raise UserError(f"--adasum wants 2, 4, 8, … ranks, these are {world.size}")
        if not self.adasum:
            self.optimizer = world.wrap_optimizer(
                self.optimizer,
                self.model.trainable_variables,
                options.fp16_allreduce,
                options.accumulate_steps,
            )
        if policy == "float16":
            # Around Horovod's: what overflows on one rank is infinite on all after the reduction, so all skip it.
            self.optimizer = tf.keras.mixed_precision.LossScaleOptimizer(self.optimizer)
        self.frozen = False  # whether the last step was with frozen batch norm
        # Slots now: they are broadcast, and restored, before the first step.
        self.optimizer._create_all_weights(self.model.trainable_variables)
        self.ema = options.ema
        self.averages = [tf.Variable(v, trainable=False) for v in self.model.trainable_variables if self.ema]
        tracked = {"averages": self.averages} if self.ema else {}
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer, **tracked)
        # No Python control flow in these graphs, and autograph would take long over Horovod's and Keras's.
        self.train_graphs = {
            frozen: tf.function(functools.partial(self._train_step, frozen=frozen), autograph=False)
            for frozen in (False, True)
        }
        self.eval_graph = tf.function(self._eval_step, autograph=False)
        self.calibration_graph = tf.function(
            lambda images, part: calibrate(self.model, normalise(self.model_name, images), part),
            autograph=False,
        )

    @property
    def statistics(self) -> list[tf.Variable]:
        """Batch norm's moving averages: each rank has its own until they are averaged."""
        return [v for v in self.model.non_trainable_variables if "moving_" in v.name]

    @property
    def optimizer_variables(self) -> list[tf.Variable]:
        """Adam's moments and its count of updates; of float16 also the loss scale and its count."""
        variables = self.optimizer.variables  # a method in Keras, a list once Horovod has wrapped it
        found = list(variables() if callable(variables) else variables)
        if isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
            found += [self.optimizer._loss_scale.current_loss_scale, self.optimizer.dynamic_counter]
        return found

    def synchronise(self) -> None:
        """Collective: rank 0's model and optimizer on every rank."""
        self.world.broadcast_variables([*self.model.variables, *self.optimizer_variables, *self.averages])

    def load(self, path: Path) -> str:
        """Pre-trained weights into this rank's model; says what was loaded. ValueError if they do not fit."""
        report = str(load_weights(self.model, path))
        for average, variable in zip(self.averages, self.model.trainable_variables):
            average.assign(variable)
        return report

    def restore(self, path: Path) -> dict[str, Any]:
        """This rank's model and optimizer from a checkpoint; its state. CheckpointError if it is another's."""
        return restore_checkpoint(path, self.checkpoint)

    def average_statistics(self) -> None:
        """Collective: one model on all ranks, before it is validated, saved or exported."""
        self.world.average_variables(self.statistics)

    def calibrate(self, images: np.ndarray, part: float) -> None:
        """Collective: moves batch norm's averages by `part` to what inference sees of uint8 (B, H, W, 3)."""
        self.calibration_graph(tf.constant(images), tf.constant(part, tf.float32))
        self.average_statistics()  # Horovod: so variances are around the mean of all ranks' images

    def train_step(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        learning_rate: float,
        batch: int,
        frozen: bool = False,
        stop: bool = False,
    ) -> StepResult:
        """Collective: one update from uint8 images (B, H, W, 3) and labels (B, H, W).

        `batch`: its index, of which the rank's dropout is a function. `frozen`: the network in inference mode.
        The first time, batch norm's averages become one over ranks.
        """
        if frozen and not self.frozen:
            self.average_statistics()  # Horovod
        self.frozen = frozen
        self.optimizer.learning_rate = learning_rate
        seed = np.random.SeedSequence((self.seed, self.world.rank, batch)).generate_state(2) >> 1
        shared, loss, confusion, histogram = self.train_graphs[frozen](
            tf.constant(images), tf.constant(labels), tf.constant(seed, tf.int32), tf.constant(float(stop))
        )
        mean_loss, stop_votes = shared.numpy()
        counts = (confusion.numpy(), histogram.numpy(), float(loss), len(images))
        return StepResult(float(mean_loss), bool(stop_votes > 0), counts)

    def evaluate_batch(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray, float, int], np.ndarray]:
        """Inference mode, not collective: counts for `Counts.add`, and the predicted classes (B, H, W) uint8."""
        loss, confusion, histogram, classes = self.eval_graph(tf.constant(images), tf.constant(labels))
        return (confusion.numpy(), histogram.numpy(), float(loss), len(images)), classes.numpy()

    def predict(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Not collective: classes (B, H, W) uint8 in inference mode."""
        return self.evaluate_batch(images, labels)[1]

    def _train_step(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor, frozen: bool
    ) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape, drawing(seed):
            logits = self.network(images, not frozen)
            loss = self.loss(labels, logits)
        if self.adasum:
            tape = self.world.adasum_tape(tape, self.fp16_allreduce)  # Horovod
        # Horovod: minimize reduces the gradients (apply_gradients alone would not).
        self.optimizer.minimize(loss, self.model.trainable_variables, tape=tape)
        waits = tf.constant(False)  # for the other batches of an update
        if self.accumulates:
            # Horovod counts batches as iterations; Adam's bias correction wants updates.
            waits = self.optimizer._agg_helper.counter > 0
            self.optimizer.iterations.assign_sub(tf.cast(waits, tf.int64))
        if self.ema:
            self._average_weights(waits)
        # Horovod: all ranks see the same loss and the same wish to stop, so they act at the same step.
        shared = self.world.mean_in_graph(tf.stack([loss, stop]))
        return (shared, loss, *strip_counts(labels, logits))

    def _average_weights(self, waits: tf.Tensor) -> None:
        """Moves the averages to the weights, further in the first updates: they began at the random start."""
        updates = tf.cast(self.optimizer.iterations, tf.float32)
        decay = tf.minimum(self.ema, (1 + updates) / (10 + updates))
        part = tf.where(waits, 0.0, 1 - decay)
        for average, variable in zip(self.averages, self.model.trainable_variables):
            average.assign_add(part * (variable - average))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the averaged weights, if there are any."""
        variables = self.model.trainable_variables[: len(self.averages)]
        kept = [variable.numpy() for variable in variables]
        for variable, average in zip(variables, self.averages):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, value in zip(variables, kept):
                variable.assign(value)

    def _eval_step(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        logits = self.network(images, False)
        classes = tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)
        return (self.loss(labels, logits), *strip_counts(labels, logits), classes)

    def summed(self, counts: Counts) -> Counts:
        """Collective: the counts of all ranks together."""
        return Counts.unpacked(self.world.sum(counts.packed()), self.num_classes)

    def export(self, path: Path) -> None:
        """A SavedModel at `path`, written aside and renamed."""
        temporary = path.with_name(f"tmp_{path.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        # Nobody trains it on: without the gradients of every swish the export takes a third less time.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with self.averaged():
            serving_model(self.model_name, self.model).save(
                temporary, include_optimizer=False, options=options
            )
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "classes": self.num_classes,
            "parameters": self.model.count_params(),
        }
