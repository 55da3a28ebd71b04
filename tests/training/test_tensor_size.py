"""Steps with tensors that TensorFlow's kernels cannot count are refused, with what would work."""

from __future__ import annotations

import pytest

import models.from_options
from tests.helpers.toy_models import pixelwise, real_model
from training import tensor_size
from training.options import build_parser
from training.tensor_size import network_to_train
from training.trainer import Trainer
from utils.cli import UserError
from utils.ranks.world import World


def build(*words: str):
    return network_to_train(build_parser().parse_args(words), 2)


def test_what_is_too_large_is_refused_where_the_training_builds_its_network(monkeypatch):
    monkeypatch.setattr(models.from_options, "build_model", pixelwise)
    monkeypatch.setattr(tensor_size, "LIMIT", 2 * 64 * 32 * 2)
    with pytest.raises(
        UserError, match=r"images has 24,576 elements .* 8,192: take --ranks_per_patch 4 or more$"
    ):
        Trainer(build_parser().parse_args(["--img_size", "64"]), 2, World())
    with pytest.raises(UserError, match=r"--ranks_per_patch 2 or more or --batch_size 1$"):
        build("--img_size", "40", "--batch_size", "2")
    build("--img_size", "64", "--ranks_per_patch", "4")
    build("--img_size", "40", "--batch_size", "1")


def test_the_real_network_is_refused_from_the_first_size_that_is_too_large(monkeypatch):
    monkeypatch.setattr(
        models.from_options, "build_model", lambda *_, **options: real_model("effdetd0", 2, fpn_min_level=1)
    )
    build("--img_size", "4096", "--batch_size", "3")
    build("--img_size", "8192", "--batch_size", "2", "--ranks_per_patch", "4")
    # 128 channels of 4096² pixels are 2³¹ elements, one more than there may be.
    with pytest.raises(
        UserError, match=r"skip.* 4,294,967,296 elements .* take --ranks_per_patch 3 or more$"
    ):
        build("--img_size", "8192", "--batch_size", "2")
    with pytest.raises(UserError, match=r"2,147,483,648 elements .* take --ranks_per_patch 2 or more$"):
        build("--img_size", "8192", "--batch_size", "1")
    shared = ("--img_size", "8192", "--batch_size", "1", "--ranks_per_patch", "4")
    with pytest.raises(
        UserError, match=r"^--validate_slides predicts whole patches .* 2,147,483,648 elements"
    ):
        build(*shared, "--validate_slides", "2")
    build("--img_size", "4096", "--batch_size", "1", "--ranks_per_patch", "2", "--validate_slides", "2")
