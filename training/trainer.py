"""The model, its optimizer and the two graph functions of the loop: one training step, one evaluation step."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from models import CLASSES_FILE, normalise, serving_model, training_network
from models.from_options import network_from_options, set_precision
from models.layers import drawing
from models.spatial.network import spatial_runner
from samplers import Batch
from training.card import write_card
from training.checkpoint import restore_checkpoint
from training.distributed_optimizer import (
    distributed_optimizer,
    optimizer_variables,
    update_variables,
    uses_adasum,
)
from training.feed import Fed, Feed, Pixels
from training.losses import make_loss
from training.metrics import strip_counts
from training.precise_bn import update_precise_statistics
from training.tensor_size import network_to_train
from utils.files import write_atomically
from utils.ranks.world import World
from utils.startup import NO_FLOAT16, lines_left_out

ALIGNMENT = 64  # bytes, of TensorFlow's tensors

BatchCounts = tuple[np.ndarray, np.ndarray, float, int]  # what `Counts.add` takes


class StepResult(NamedTuple):
    """The result of one training step: `loss` and `stop` are the same on all ranks, `counts` are this rank's."""

    loss: float  # mean over all ranks
    stop: bool  # some rank asked to stop
    counts: BatchCounts


def set_up_keras(options: argparse.Namespace) -> None:
    """Set the seed, the number format and, if asked for, determinism, of all that is built from now on."""
    tf.keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    # XLA compiles clusters of operations: the whole step cannot be compiled, since Horovod's reductions cannot.
    if options.jit:
        tf.config.optimizer.set_jit("autoclustering")
    set_precision(options.mixed_precision)
    if options.fp16_allreduce and not options.verbose:
        with lines_left_out(NO_FLOAT16):
            tf.cast(0.0, tf.float16)


class Trainer:
    """Owns the variables. All ranks build it alike and call its collective methods in the same order."""

    def __init__(
        self,
        options: argparse.Namespace,
        num_classes: int,
        world: World,
        class_weights: Sequence[float] = (),  # of each class in the loss, 1 for those beyond
    ) -> None:
        self.world, self.seed = world, options.seed
        self.model_name = options.model
        self.num_classes = num_classes
        self.accumulates = options.accumulate_steps > 1
        self.adasum, self.fp16_allreduce = uses_adasum(options, world), options.fp16_allreduce
        set_up_keras(options)
        self.model = network_to_train(options, num_classes, world.batch_norm(options.sync_batch_norm))
        self.spatial = spatial_runner(self.model, options.img_size, world.group)
        self.network = training_network(options.model, self.model, options.recompute, self.spatial)
        self.loss = make_loss(options.loss, class_weights, self.spatial.sum if self.spatial else tf.identity)
        self.optimizer = distributed_optimizer(options, world, self.model.trainable_variables)
        self.gpu = "GPU:0" if tf.config.list_logical_devices("GPU") else None
        self.frozen = False  # whether batch norm was frozen in the last step
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)
        # There is no Python control flow in these graphs, and autograph would take long over Horovod's and Keras's.
        self.train_graphs = {
            frozen: tf.function(functools.partial(self._train_step, frozen=frozen), autograph=False)
            for frozen in (False, True)
        }
        self.eval_graph = tf.function(self._eval_step, autograph=False)
        self.precise_bn_graph = tf.function(functools.partial(precise_bn_step, self), autograph=False)

    def synchronise(self) -> None:
        """Collective: copy rank 0's model and optimizer to every rank."""
        self.world.broadcast_variables([*self.model.variables, *optimizer_variables(self.optimizer)])

    def restore(self, path: Path) -> dict[str, Any]:
        """Load this rank's model and optimizer from a checkpoint. Return its state. CheckpointError if they differ."""
        return restore_checkpoint(path, self.checkpoint)

    @property
    def statistics(self) -> list[tf.Variable]:
        """Return batch norm's moving averages: each rank has its own until they are averaged."""
        return [v for v in self.model.non_trainable_variables if "moving_" in v.name]

    def average_statistics(self) -> None:
        """Collective: average batch norm's moving averages over ranks."""
        self.world.average_variables(self.statistics)

    def update_precise_bn(self, images: Pixels, part: float) -> None:
        """Collective: move batch norm's statistics by `part` to what inference sees of uint8 images (B, H, W, 3)."""
        self.precise_bn_graph(shared_tensor(images), tf.constant(part, tf.float32))
        self.average_statistics()  # Horovod: so the next variances are around the mean of all ranks' images

    def train_step(
        self,
        images: Pixels,
        labels: Pixels,
        learning_rate: float,
        batch: int,
        frozen: bool = False,
        stop: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> StepResult:
        """Collective: update the variables once, from uint8 images (B, H, W, 3) and labels (B, H, W) or strips of them.

        `batch` is the batch's index, of which the group's dropout is a function. `frozen`: batch norm uses its moving
        averages, as in inference; the first time they are averaged over ranks. `stop`: this rank asks to stop.
        `meanwhile` is called when the step has begun: a GPU computes on while it runs.
        """
        if frozen and not self.frozen:
            self.average_statistics()  # Horovod
        self.frozen = frozen
        self.optimizer.learning_rate = learning_rate
        seed = np.random.SeedSequence((self.seed, self.world.group.index, batch)).generate_state(2) >> 1
        pixels = shared_tensor(images), shared_tensor(labels)
        shared, loss, confusion, histogram = self.train_graphs[frozen](
            *pixels, tf.constant(seed, tf.int32), tf.constant(float(stop))
        )
        meanwhile()
        mean_loss, stop_votes = shared.numpy()
        counts = (confusion.numpy(), histogram.numpy(), float(loss), self.world.group.counted(images))
        return StepResult(float(mean_loss), bool(stop_votes > 0), counts)

    def evaluate_batch(
        self, images: Pixels, labels: Pixels, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[BatchCounts, np.ndarray]:
        """Collective in the group: return a batch's counts and predicted classes uint8 (B, H, W), in inference mode."""
        loss, confusion, histogram, classes = self.eval_graph(shared_tensor(images), shared_tensor(labels))
        meanwhile()
        counts = (confusion.numpy(), histogram.numpy(), float(loss), self.world.group.counted(images))
        return counts, classes.numpy()

    def _train_step(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, stop: tf.Tensor, frozen: bool
    ) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape, drawing(seed):
            logits = self.network(images, not frozen)
            loss = self.loss(labels, logits)
        if self.adasum:
            tape = self.world.adasum_tape(tape, self.fp16_allreduce)  # Horovod
        # Horovod: computing the gradients reduces them over ranks; Keras's `minimize` does the same two calls.
        gradients = self.optimizer._compute_gradients(loss, self.model.trainable_variables, tape=tape)
        # Horovod: all ranks see the same loss and the same wish to stop, so they act at the same step.
        shared = self.world.mean_in_graph(tf.stack([loss, stop]))
        update_variables(self.optimizer, gradients, self.accumulates, shared)
        return (shared, loss, *strip_counts(labels, logits))

    def _eval_step(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        logits = self.network(images, False)
        classes = tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)
        return (self.loss(labels, logits), *strip_counts(labels, logits), classes)

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint says of the model."""
        classes, parameters = self.num_classes, self.model.count_params()
        return {"model": self.model_name, "classes": classes, "parameters": parameters}


def shared_tensor(array: Pixels) -> tf.Tensor:
    """Return a tensor of an array without a copy, which takes a millisecond for a batch of 2 × 1024² and grows with it.

    The array may change again when what is computed from the tensor was read. A batch lies in memory that the sampler's
    workers share; an array that TensorFlow cannot use as it lies there is copied.
    """
    if tf.is_tensor(array):  # on the GPU already
        return array
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array)


def precise_bn_step(trainer: Trainer, images: tf.Tensor, part: tf.Tensor) -> None:
    """Compute in a graph what `Trainer.update_precise_bn` does on one rank."""
    images = normalise(trainer.model_name, images)
    if trainer.spatial is None:
        update_precise_statistics(trainer.model, images, part)
    else:
        update_precise_statistics(trainer.model, images, part, trainer.spatial, trainer.spatial.mean)


def compute_precise_bn(trainer: Trainer, fed: Fed, feed: Feed, count: int) -> Fed:
    """Collective: compute batch norm's statistics anew from `count` batches, of which `fed` is the first.

    Return the batch to go on with.
    """
    for i in range(count):
        trainer.update_precise_bn(fed.images, 2 / (i + 2))  # a mean in which the last ones weigh most
        fed = next(feed)
    return fed


def export_model(
    options: argparse.Namespace,
    model: tf.keras.Model,
    path: Path,
    class_names: Sequence[Sequence[str]],
    card: dict[str, Any] | None = None,
) -> None:
    """Write a SavedModel to `path`: uint8 RGB in, class probabilities out, in inference mode. Rank 0 alone calls it.

    It computes in float32 whatever the training did, since not every CPU has bfloat16. The names of the classes are in
    it as well (`CLASSES_FILE`), and the model `card` if there is one.
    """
    if model.compute_dtype != "float32":
        weights, classes = model.get_weights(), model.output_shape[-1]
        set_precision("float32")
        model = network_from_options(options, classes)
        set_precision(options.mixed_precision)
        model.set_weights(weights)
    # Nobody trains it on: without the gradients of every swish the export takes a third less time.
    saving = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    network = serving_model(options.model, model)

    def write(partial: Path) -> None:
        network.save(partial, include_optimizer=False, options=saving)
        (partial / CLASSES_FILE).write_text(json.dumps(class_names, ensure_ascii=False) + "\n")
        if card is not None:
            write_card(partial, card)

    write_atomically(path, write)


def fail_on_loss(batch: Batch, result: StepResult, step: int, world: World, log_dir: Path) -> NoReturn:
    """Collective: raise FloatingPointError, and write the batch that did it to a file.

    Ranks that share their patches have the same loss, so each of them writes its strips.
    """
    path = log_dir / f"bad_batch_step_{step}_rank_{world.rank}.npz"
    mine = result.counts[2]
    where = f"of rank {world.rank} is {mine}"
    if not math.isfinite(mine):
        where += f": its patches are {[str(patch) for patch in batch.patches]}"
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            np.savez_compressed(path, images=batch.images, labels=batch.labels)
            where += f", in {path}"
    world.barrier()  # Horovod: the launcher ends all ranks soon after the first one, and others may still write
    raise FloatingPointError(
        f"the loss is {result.loss} at step {step}, that {where}. The last good checkpoint in "
        f"{log_dir / 'checkpoints'} stays; a lower --learning_rate may help"
    )
