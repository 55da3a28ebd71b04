"""Validation by ranks that share patches finds what one rank finds: counts, scores by slide, patches that are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samplers import SamplerConfig, validation_loader
from tests.helpers.groups import Gathering, Member, on_members
from tests.helpers.lesion_slides import LESION_RED, make_slide
from training.validate import Validation, validate
from utils.ranks.single import Ranks

CONFIG = SamplerConfig("surf", img_size=96, batch_size=4, max_validation_patches=24)


@dataclass
class Redness:
    """Stands for a trainer: predicts tumour where a pixel is red, of which some are not in a lesion."""

    world: Any
    num_classes: int = 2
    gpu: None = None

    def average_statistics(self) -> None:
        pass

    def evaluate_batch(
        self, images: np.ndarray, labels: np.ndarray, meanwhile: Callable[[], None]
    ) -> tuple[Any, np.ndarray]:
        classes = (images[..., 0] > LESION_RED - 40).astype(np.uint8)
        confusion = np.bincount((labels * 2 + classes).ravel(), minlength=4).reshape(2, 2)
        images_here = len(images) if self.world.group.is_first else 0
        return (confusion, np.zeros((2, 512), np.int64), 0.5, images_here), classes


def test_strips_are_validated_as_whole_patches(tmp_path: Path) -> None:
    pairs = [make_slide(tmp_path, f"tumor_{i}", label=kind) for i, kind in enumerate(("mask", "xml"))]
    with validation_loader(pairs, CONFIG, 0, 1, 0) as loader:
        whole = validate(Redness(Ranks()), loader)

    def of_strips(member: int, gathering: Gathering) -> Validation:
        world = Member(member, 3, gathering=gathering)
        config = replace(CONFIG, strip=world.group.strip(96))
        with validation_loader(pairs, config, 0, 1, 0, world.gather_in_group) as loader:
            return validate(Redness(world), loader)

    for found in on_members(3, of_strips)[0]:
        assert found.counts.images == whole.counts.images == 24
        assert found.counts.summary() == whole.counts.summary()
        assert found.slides.keys() == whole.slides.keys()
        for name, confusion in whole.slides.items():
            np.testing.assert_array_equal(found.slides[name], confusion)
        for kind in ("mixed", "worst", "best"):
            shown, expected = getattr(found, kind), getattr(whole, kind)
            assert [(s.key, s.slide, s.x_l0, s.y_l0, s.miou) for s in shown] == [
                (s.key, s.slide, s.x_l0, s.y_l0, s.miou) for s in expected
            ]
            for panel, other in zip(shown, expected):
                np.testing.assert_array_equal(panel.picture, other.picture)
    assert whole.counts.summary()["miou"] < 0.99
    assert pytest.approx(0.5) == whole.counts.summary()["loss"]
