"""Weights of classes in the loss: by name, and balanced by what the sampler draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from samplers import SamplerConfig
from tests.helpers.groups import Gathering, Member, on_members
from tests.helpers.lesion_slides import make_slide
from training.class_weights import balanced_weights, class_weights, count_pixels, parse_class_weights
from training.option_checks import parse_options
from utils.cli import UserError
from utils.ranks.single import Ranks
from utils.ranks.world import World

NAMES = [["other"], ["_0", "_1"], ["stroma"]]


def test_classes_are_named_by_any_of_their_groups_or_by_number() -> None:
    assert parse_class_weights(["_1:2", "stroma:0.5"], NAMES) == [1, 2, 0.5]
    assert parse_class_weights(["0:0", "2:3"], NAMES) == [0, 1, 3]
    assert parse_class_weights(["a:b:4"], [["other"], ["a:b"]]) == [1, 4]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (["tumour:2"], "there is no class 'tumour', the classes are other, _0/_1, stroma"),
        (["_0:-1"], "'_0:-1' is not NAME:WEIGHT"),
        (["_0:inf"], "'_0:inf' is not NAME:WEIGHT"),
        (["_0:nan"], "'_0:nan' is not NAME:WEIGHT"),
        (["balanced", "_0:2"], "'balanced' is not NAME:WEIGHT"),
        (["_0:2", "_1:3"], "'_1:3': its class has a weight already"),
        (["0:0", "1:0", "2:0"], "all 0"),
    ],
)
def test_wrong_weights_are_named(items: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_class_weights(items, NAMES)
    assert said in str(error.value)


def test_balanced_is_scikit_learns() -> None:
    pixels = np.array([700, 250, 50])
    labels = np.repeat([0, 1, 2], pixels)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(pixels) == pytest.approx(expected)
    assert balanced_weights(np.array([30, 0, 10])) == pytest.approx([40 / 60, 1, 2])


def test_balanced_counts_the_known_pixels_of_what_is_drawn(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "tumor_1")
    folders = ["--slide_path", str(tmp_path), "--label_path", str(tmp_path)]
    options = parse_options([*folders, "--class_weights", "balanced"])
    config = SamplerConfig("surf", img_size=64, batch_size=4, batch_tumor_ratio=0.5)
    other, tumour = class_weights(options, 2, [pair], config, World())
    assert tumour > 1
    assert 0.5 < other < 1
    assert 0.5 / other + 0.5 / tumour == pytest.approx(1)  # the mean over pixels is 1


def test_ranks_that_share_patches_count_what_one_rank_counts(tmp_path: Path) -> None:
    pairs = [make_slide(tmp_path, "tumor_1"), make_slide(tmp_path, "tumor_2", label="xml")]
    config = SamplerConfig("surf", img_size=64, batch_size=4, batch_tumor_ratio=0.5, augment=True)
    whole = count_pixels(pairs, config, 2, Ranks())

    def of_strips(member: int, gathering: Gathering) -> np.ndarray:
        world = Member(member, 3, gathering=gathering)
        mine = replace(config, strip=world.group.strip(64))
        return count_pixels(pairs, mine, 2, world)

    parts, _ = on_members(3, of_strips)
    np.testing.assert_array_equal(sum(parts), whole)
    assert all(part.sum() < whole.sum() for part in parts)
