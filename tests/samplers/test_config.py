"""What a SamplerConfig says is done by every sampler: shares, augmentation, the level of the regions, bad slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samplers
from samplers import SAMPLERS, SamplerConfig, SamplerError, SlidePair, training_loader, validation_loader
from samplers.augment import Augmentation
from samplers.patches import SEED_AUGMENT, share_slides
from samplers.slides.errors import DataError
from tests.helpers.lesion_slides import HEIGHT, SPACING, WIDTH, make_slide
from tests.helpers.tiny_slides import texture, write_levels

both = pytest.mark.parametrize("name", list(SAMPLERS))


def config_of(name: str, **more: Any) -> SamplerConfig:
    return SamplerConfig(name, img_size=48, batch_size=4, **more)


def drawn(pairs: list[SlidePair], config: SamplerConfig, size: int = 1) -> samplers.Batch:
    """The first batch of rank 0 of `size`."""
    with training_loader(pairs, config, 0, size, processes=0) as loader:
        return next(iter(loader))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[SlidePair]:
    folder = tmp_path_factory.mktemp("options")
    return [make_slide(folder, f"tumor_{i}", label="xml") for i in range(4)]


@both
def test_the_seed_deals_the_slides_out_to_the_ranks(name: str, pairs: list[SlidePair]) -> None:
    shares = set()
    for seed in range(4):
        expected = {pair.name for pair in share_slides(pairs, 0, 4, seed)}
        assert {patch.slide for patch in drawn(pairs, config_of(name, seed=seed), 4).patches} == expected
        shares |= expected
    assert len(shares) > 1


@both
def test_the_seed_decides_which_batches_have_one_more_tumour_patch(name: str, pairs: list[SlidePair]) -> None:
    configs = [config_of(name, seed=seed, batch_tumor_ratio=0.1) for seed in range(2)]
    first, second = (SAMPLERS[name](pairs, config, 0, 1) for config in configs)
    assert [first.tumour_patches(i) for i in range(40)] != [second.tumour_patches(i) for i in range(40)]


@both
@pytest.mark.parametrize("jitter", ["none", "light", "strong"])
def test_stains_are_jittered_as_asked(name: str, jitter: str, pairs: list[SlidePair]) -> None:
    config = config_of(name, seed=5)
    plain, found = (drawn(pairs, replace(config, augment=augment, stain_jitter=jitter)) for augment in (0, 1))
    for slot in range(4):
        place = (SEED_AUGMENT, 5, 0, 0, slot)
        augmentation = Augmentation.draw(np.random.default_rng(place), jitter)
        image, label = np.empty_like(plain.images[slot]), np.empty_like(plain.labels[slot])
        augmentation.image(plain.images[slot], image)
        augmentation.label(plain.labels[slot], label)
        np.testing.assert_array_equal(found.images[slot], image)
        np.testing.assert_array_equal(found.labels[slot], label)


@pytest.fixture
def fading(tmp_path: Path) -> SlidePair:
    """Its level 1 is glass: regions are found on level 0 alone."""
    levels = [texture(WIDTH, HEIGHT), np.full((HEIGHT // 4, WIDTH // 4, 3), 245, np.uint8)]
    return SlidePair(write_levels(tmp_path / "fading.tif", levels, SPACING), None)


@both
def test_regions_are_found_on_the_level_that_was_asked_for(
    name: str, fading: SlidePair, pairs: list[SlidePair]
) -> None:
    config = config_of(name, batch_tumor_ratio=0.0)
    sampler = SAMPLERS[name]([fading, pairs[0]], replace(config, bb_downsample=0), 0, 1)
    assert sampler.propose(np.random.default_rng(0), False, {"tumor_0"}).pair == fading
    sampler = SAMPLERS[name]([fading, pairs[0]], replace(config, bb_downsample=1), 0, 1)
    with pytest.raises(SamplerError, match="no training slide has room"):
        sampler.propose(np.random.default_rng(0), False, {"tumor_0"})


def test_validation_looks_for_tissue_on_the_level_that_was_asked_for(fading: SlidePair) -> None:
    config = config_of("surf", bb_downsample=0)
    assert len(list(validation_loader([fading], config, 0, 1, processes=0))) == 2
    with pytest.raises(DataError, match="neither tissue nor a lesion"):
        validation_loader([fading], replace(config, bb_downsample=1), 0, 1, processes=0)


@pytest.mark.parametrize(("most", "allowed"), [(3, 3), (0.5, 2), (0, 0)])
def test_so_many_slides_may_fail_in_training_and_in_validation(
    most: float, allowed: int, pairs: list[SlidePair]
) -> None:
    config = config_of("surf", max_bad_slides=most)
    for make in (training_loader, validation_loader):
        assert make(pairs, config, 0, 1, processes=0)._allowed == allowed
