"""Options that a Trainer hands on to TensorFlow or Horovod."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models.from_options
from samplers.workers import ring
from tests.helpers.alike_ranks import AlikeRanks
from tests.helpers.rank_weights import patches
from tests.helpers.toy_models import pixelwise
from training.options import build_parser
from training.trainer import Trainer, shared_tensor
from utils.cli import UserError
from utils.ranks import world as distributed
from utils.ranks.world import World


def trainer_of(monkeypatch: pytest.MonkeyPatch, *words: str, world: World | None = None) -> Trainer:
    monkeypatch.setattr(models.from_options, "build_model", pixelwise)
    return Trainer(build_parser().parse_args(words), 2, world or World())


@dataclass(frozen=True)
class TakingTapes(AlikeRanks):
    """Writes down what is combined by Adasum, and what Horovod's optimizer would be made with."""

    taken: list[Any] = field(default_factory=list)

    def adasum_tape(self, tape: tf.GradientTape, fp16_allreduce: bool) -> tf.GradientTape:
        self.taken.append(("adasum", fp16_allreduce))
        return tape

    def wrap_optimizer(self, optimizer: Any, variables: Any, *more: Any) -> Any:
        self.taken.append(("mean", *more))
        return optimizer

    def batch_norm(self, synchronised: bool) -> Any:
        self.taken.append(("synchronised", synchronised))
        return super().batch_norm(False)


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("--accumulate_steps 1", [("synchronised", False), ("mean", False, 1)]),
        ("--fp16_allreduce --sync_batch_norm", [("synchronised", True), ("mean", True, 1)]),
        ("--adasum", [("synchronised", False), ("adasum", False)]),
        ("--adasum --fp16_allreduce", [("synchronised", False), ("adasum", True)]),
    ],
)
def test_gradients_are_reduced_as_asked(words, taken, monkeypatch):
    world = TakingTapes(size=2)
    trainer = trainer_of(monkeypatch, *words.split(), world=world)
    if "--adasum" in words:
        trainer.train_graphs[False].get_concrete_function(
            *(tf.constant(array) for array in patches(0)), tf.zeros(2, tf.int32), tf.zeros(())
        )
    assert world.taken == taken


@pytest.mark.parametrize(("fp16", "sent"), [(False, "none"), (True, "fp16")])
def test_horovod_is_asked_for_adasum_and_for_the_precision_of_what_is_sent(fp16, sent, monkeypatch):
    hvd = pytest.importorskip("horovod.tensorflow")
    asked = []
    monkeypatch.setattr(hvd, "DistributedGradientTape", lambda tape, **more: asked.append(more))
    monkeypatch.setattr(distributed.hvd_keras, "DistributedOptimizer", lambda _, **more: asked.append(more))
    world, compression = World(size=2, horovod=True), getattr(hvd.Compression, sent)
    world.adasum_tape(None, fp16)
    world.wrap_optimizer(None, [], fp16)
    assert asked[0] == {"compression": compression, "op": hvd.Adasum}
    assert asked[1]["compression"] is compression


def test_adasum_wants_a_power_of_two(monkeypatch):
    with pytest.raises(UserError, match="--adasum needs 2, 4, 8, … ranks, but there are 6"):
        trainer_of(monkeypatch, "--adasum", world=AlikeRanks(size=6))


def test_operations_are_deterministic_if_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    trainer_of(monkeypatch)
    assert asked == []
    trainer_of(monkeypatch, "--deterministic")
    assert asked == [True]


def test_a_variable_without_gradient_raises(monkeypatch):
    """Keras only warns and never trains it."""

    def with_a_dead_end(*words: Any, **more: Any) -> tf.keras.Model:
        model = pixelwise(*words, **more)
        model.layers[-1].dead = model.layers[-1].add_weight(name="dead", shape=())
        return model

    monkeypatch.setattr(models.from_options, "build_model", with_a_dead_end)
    trainer = Trainer(build_parser().parse_args([]), 2, World())
    with pytest.raises(RuntimeError, match=r"1 variables have no gradient .* dead"):
        trainer.train_step(*patches(0), 1e-3, 0)


def test_a_batch_in_the_workers_memory_is_not_copied_and_any_other_is():
    slots = ring.views(ring.create(1, 64, 2), 1, 64, 2)
    for images, labels in slots:
        images[:], labels[:] = 3, 4
        for array in (images, labels):
            tensor = shared_tensor(array)
            array[0, 5, 6] = 9
            assert np.all(tensor[0, 5, 6].numpy() == 9)
            np.testing.assert_array_equal(tensor.numpy(), array)
    odd = np.zeros(200, np.uint8)[1:]
    for array in (
        odd[-(odd.ctypes.data) % 64 + 1 :][:64],
        slots[0][0][:, ::2],
        np.broadcast_to(np.uint8(7), (2, 64)),
    ):
        tensor = shared_tensor(array)
        np.testing.assert_array_equal(tensor.numpy(), array)
