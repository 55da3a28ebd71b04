"""What a rank sends, counted from the forward pass, is what its whole step sends."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import tf_keras as keras

import models.from_options
from models.spatial.traffic import sent_forward, sent_in_step
from tests.helpers.toy_models import toy_efficientdet
from training.options import build_parser
from training.trainer import Trainer
from utils.ranks.lone_member import LoneMember, LoneWorld

RANKS = 4


def test_a_convolution_sends_a_row_to_each_neighbour_and_a_batch_norm_its_moments_to_all():
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(2, 3, padding="same", name="conv")(images)
    model = keras.Model(images, keras.layers.BatchNormalization(name="norm")(x))
    assert sent_forward(model, 64, 5, RANKS) == {
        "conv": [2 * 5 * 64 * 3 * 4],
        "norm.moments": [3 * 2 * 2 * 4],
    }
    assert sent_forward(model, 64, 5, 1) == {}


def step_of(size: int, recompute: str) -> dict[str, list[int]]:
    """Return what a rank sends in the whole step of a training."""
    words = ["--img_size", str(size), "--batch_size", "1", "--recompute", recompute]
    options = build_parser().parse_args([*words, "--ranks_per_patch", str(RANKS)])
    member = LoneMember.inside(RANKS)

    def build(name, size, classes, bn_momentum, batch_norm, **_):
        return toy_efficientdet(size, classes, bn_momentum=bn_momentum, batch_norm=batch_norm)

    with mock.patch.object(models.from_options, "build_model", build):
        trainer = Trainer(options, 2, LoneWorld(member=member))
    images = np.zeros((1, size // RANKS, size, 3), np.uint8)
    trainer.train_graphs[False].get_concrete_function(
        images, images[..., 0], np.zeros(2, np.int32), np.float32(0)
    )
    return member.sent


@pytest.mark.parametrize("recompute", ["none", "blocks", "full"])
def test_the_forward_pass_and_the_names_of_a_small_step_tell_what_a_step_sends(recompute):
    small, step = step_of(1024, recompute), step_of(2048, recompute)
    forward = sent_forward(toy_efficientdet(None), 2048, 1, RANKS)
    of_network = {name: sizes for name, sizes in step.items() if not name.startswith("loss")}
    sent, count = sent_in_step(forward, small)
    assert sent == sum(map(sum, of_network.values()))
    assert count == sum(map(len, of_network.values()))
