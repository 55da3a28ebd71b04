"""Options that a Trainer hands on to TensorFlow or Horovod, and the averaged weights in validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import tensorflow as tf

import training.trainer
from samplers import Batch, PatchInfo
from tests.helpers.alike_ranks import AlikeRanks
from tests.helpers.rank_weights import patches
from tests.helpers.toy_models import pixelwise
from training.options import build_parser
from training.trainer import Trainer
from training.validate import validate
from utils.cli import UserError
from utils.ranks import world as distributed
from utils.ranks.world import World


def trainer_of(monkeypatch: pytest.MonkeyPatch, *words: str, world: World | None = None) -> Trainer:
    monkeypatch.setattr(training.trainer, "build_model", pixelwise)
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
    with pytest.raises(UserError, match="--adasum wants 2, 4, 8, … ranks, these are 6"):
        trainer_of(monkeypatch, "--adasum", world=AlikeRanks(size=6))


def test_operations_are_deterministic_if_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    trainer_of(monkeypatch)
    assert asked == []
    trainer_of(monkeypatch, "--deterministic")
    assert asked == [True]


class OneBatch:
    wait_seconds = 0.0
    dropped: dict[str, Any] = {}  # noqa: RUF012

    def __iter__(self):
        yield Batch(0, *patches(0), [PatchInfo("s", i, 0, 256, True) for i in range(4)])


def test_the_averaged_weights_are_what_is_validated(monkeypatch):
    trainer = trainer_of(monkeypatch, "--ema", "0.9")
    for average, variable in zip(trainer.averages, trainer.model.trainable_variables):
        average.assign(2 * variable)
    images, labels = patches(0)
    raw = trainer.evaluate_batch(images, labels)[0][2]
    with trainer.averaged():
        averaged = trainer.evaluate_batch(images, labels)[0][2]
    assert validate(trainer, OneBatch()).values()["loss"] == pytest.approx(averaged) != pytest.approx(raw)
