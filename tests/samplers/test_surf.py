"""SURF: what patches hold, where they lie, which slides they come from, and what a bad slide does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from samplers import SamplerConfig, SamplerError, SlidePair, surf, training_loader
from samplers.patches import share_slides
from samplers.reader import OpenPair
from samplers.slides.errors import DataError, ReadError
from samplers.slides.slide import Slide
from samplers.surf import Regions, SurfSampler, find_regions
from samplers.tissue import PixelSet, contrast_is_low
from tests.helpers.filled_batches import filled_batches
from tests.helpers.lesion_slides import HEIGHT, LESION_RED, LESIONS, SPACING, WIDTH, level, make_slide
from tests.helpers.tiny_slides import write_levels

CONFIG = SamplerConfig("surf", img_size=64, batch_size=4, batch_tumor_ratio=0.5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[SlidePair]:
    folder = tmp_path_factory.mktemp("surf")
    return [
        make_slide(folder, "tumor_1", mask_downsamples=(1, 2)),
        make_slide(folder, "tumor_2", [(0, 330, 90, 400), (950, 0, 960, 8)], label="xml", downsamples=(1, 5)),
        make_slide(folder, "normal_1", [], label=None, downsamples=(1,)),
    ]


@pytest.mark.parametrize("size", [8, 64, 200])
@pytest.mark.parametrize("bb_level", [0, 1, 7])
def test_tumour_patches_hold_tumour_and_the_others_none(
    pairs: list[SlidePair], size: int, bb_level: int
) -> None:
    config = replace(CONFIG, img_size=size, bb_downsample=bb_level)
    for images, labels, patches in filled_batches(pairs, config, 25):
        assert [patch.tumour for patch in patches] == [True, True, False, False]
        for image, label, patch in zip(images, labels, patches):
            assert label.any() == patch.tumour
            # The lesion's colour says where the label must be 1: frames of slide and label agree.
            np.testing.assert_array_equal(label, image[:, :, 0] == LESION_RED)
            assert 0 <= patch.x_l0 <= WIDTH - size
            assert 0 <= patch.y_l0 <= HEIGHT - size
            assert patch.size_l0 == size


def test_patches_of_another_spacing(pairs: list[SlidePair]) -> None:
    config = replace(CONFIG, img_size=32, resolution=2.3 * SPACING)
    for images, labels, patches in filled_batches(pairs[:1], config, 10):
        for image, label, patch in zip(images, labels, patches):
            assert patch.size_l0 == 74  # 32 · 2.3, rounded up
            assert label.any() == patch.tumour
            # Resampling mixes colours along the outline.
            inner, outer = cv2.erode(label, np.ones((3, 3))) > 0, cv2.dilate(label, np.ones((3, 3))) > 0
            lesion = image[1:-1, 1:-1, 0] == LESION_RED
            assert lesion[inner[1:-1, 1:-1]].all()
            assert not lesion[~outer[1:-1, 1:-1]].any()


@pytest.mark.parametrize(("ratio", "tumour"), [(1.0, 4), (0.75, 3), (0.0, 0)])
def test_the_batch_has_the_wanted_part_of_tumour(pairs: list[SlidePair], ratio: float, tumour: int) -> None:
    for _, labels, _ in filled_batches(pairs, replace(CONFIG, batch_tumor_ratio=ratio), 5):
        assert labels.any(axis=(1, 2)).sum() == tumour


@pytest.mark.parametrize(("size", "ratio"), [(1, 0.5), (4, 0.1), (3, 0.5)])
def test_parts_of_a_tumour_patch_add_up_over_batches_and_on_each_rank(
    pairs: list[SlidePair], size: int, ratio: float
) -> None:
    config = replace(CONFIG, batch_size=size, batch_tumor_ratio=ratio)
    for rank in (0, 1):
        sampler = SurfSampler(pairs, config, rank, 2)
        counts = [sampler.tumour_patches(index) for index in range(400)]
        assert set(counts) == {int(size * ratio), int(size * ratio) + 1}
        assert np.mean(counts) == pytest.approx(size * ratio, abs=0.08)
        assert np.mean(counts[::4]) == pytest.approx(size * ratio, abs=0.15)  # not every nth
    for i, (_, labels, _) in enumerate(filled_batches(pairs, config, 8, rank=1, size=2)):
        assert labels.any(axis=(1, 2)).sum() == sampler.tumour_patches(i)


def test_every_lesion_and_every_slide_is_drawn(pairs: list[SlidePair]) -> None:
    found = [patch for _, _, patches in filled_batches(pairs, CONFIG, 100) for patch in patches]
    slides = Counter(patch.slide for patch in found if not patch.tumour)
    assert set(slides) == {"tumor_1", "tumor_2", "normal_1"}
    for left, top, right, bottom in LESIONS:  # one of them is of 3 × 4 pixels
        assert any(
            p.x_l0 < right and p.x_l0 + 64 > left and p.y_l0 < bottom and p.y_l0 + 64 > top
            for p in found
            if p.slide == "tumor_1" and p.tumour
        )


def test_a_batch_depends_on_seed_rank_and_index_alone(pairs: list[SlidePair]) -> None:
    config = replace(CONFIG, augment=True)
    first, second = filled_batches(pairs, config, 4), filled_batches(pairs, config, 4)
    later = SurfSampler(pairs, config, 0, 1)
    images, labels = np.empty_like(first[3][0]), np.empty_like(first[3][1])
    assert later.fill(3, images, labels)[0] == first[3][2] == second[3][2]
    np.testing.assert_array_equal(images, first[3][0])
    np.testing.assert_array_equal(labels, second[3][1])
    for other in (
        filled_batches(pairs, replace(config, seed=1), 4),
        filled_batches(pairs, config, 4, rank=1, size=2),
    ):
        assert all(a[2] != b[2] for a, b in zip(first, other))


def test_augmentation_does_not_change_which_patches_are_drawn(pairs: list[SlidePair]) -> None:
    plain, augmented = (
        filled_batches(pairs, CONFIG, 3),
        filled_batches(pairs, replace(CONFIG, augment=True), 3),
    )
    assert [b[2] for b in plain] == [b[2] for b in augmented]
    assert not np.array_equal(plain[0][0], augmented[0][0])


def test_worker_processes_give_what_the_calling_process_gives(pairs: list[SlidePair]) -> None:
    config = replace(CONFIG, augment=True)
    for processes in (1, 2):
        with training_loader(pairs, config, 0, 1, processes, start=2) as loader:
            for batch, (images, labels, patches) in zip(loader, filled_batches(pairs, config, 6)[2:]):
                np.testing.assert_array_equal(batch.images, images)
                np.testing.assert_array_equal(batch.labels, labels)
                assert batch.patches == patches


def test_every_rank_has_slides_of_both_kinds(tmp_path: Path) -> None:
    pairs = [SlidePair(tmp_path / f"s{i}.tif", tmp_path / f"s{i}.xml" if i < 5 else None) for i in range(12)]
    for size in (1, 2, 3, 5):
        shares = [share_slides(pairs, rank, size, seed=0) for rank in range(size)]
        assert sorted(p.name for share in shares for p in share) == sorted(p.name for p in pairs)
        assert all(any(p.label for p in share) and any(not p.label for p in share) for share in shares)
    assert all(share_slides(pairs[:2], rank, 7, seed=0) for rank in range(7))
    assert share_slides(pairs, 0, 2, seed=0) != share_slides(pairs, 0, 2, seed=1)


def test_tumour_comes_from_all_slides_if_the_share_has_none(tmp_path: Path) -> None:
    pairs = [make_slide(tmp_path, "tumor_1"), make_slide(tmp_path, "empty_1", [])]
    for rank in (0, 1):
        found = [p for _, _, patches in filled_batches(pairs, CONFIG, 5, rank, 2) for p in patches]
        assert {p.slide for p in found if p.tumour} == {"tumor_1"}


def test_no_tumour_at_all_is_an_error_that_says_so(pairs: list[SlidePair]) -> None:
    with pytest.raises(SamplerError, match=r"no training slide has tumour, but batch_tumor_ratio 0\.5"):
        filled_batches(pairs[2:], CONFIG, 1)


def test_no_room_beside_the_tumour_is_an_error_that_says_so(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "tumor_1", [(100, 100, 900, 600)])
    with pytest.raises(SamplerError, match="room for a tumour-free patch of 600 pixels"):
        filled_batches([pair], replace(CONFIG, img_size=600), 1)


def test_pale_patches_are_drawn_again(tmp_path: Path) -> None:
    image = np.full((HEIGHT, WIDTH, 3), (200, 120, 180), np.uint8)
    image[:, :200] = np.random.default_rng(0).integers(0, 200, (HEIGHT, 200, 3))
    write_levels(tmp_path / "pale.tif", [image, level(image, 4)], SPACING)
    sampler = SurfSampler(
        [SlidePair(tmp_path / "pale.tif", None)], replace(CONFIG, batch_tumor_ratio=0.0), 0, 1
    )
    images, labels = np.empty((40, 64, 64, 3), np.uint8), np.empty((40, 64, 64), np.uint8)
    patches = sampler.fill(0, images, labels).patches
    # A quarter of the places are good, and the eleventh is taken as it is.
    assert sum(contrast_is_low(image) for image in images) <= 6
    assert sum(patch.x_l0 < 200 for patch in patches) >= 34


def test_most_proposals_are_right_before_they_are_checked(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "tumor_1", [(560, 400, 563, 404)])  # less than one of the 9-pixel cells
    for size, bb_level, least in ((8, 7, 1), (9, 7, 0.1), (64, 1, 0.5), (64, 7, 0.5)):
        sampler = SurfSampler([pair], replace(CONFIG, img_size=size, bb_downsample=bb_level), 0, 1)
        for tumour, share in ((True, least), (False, 1)):
            proposals = [sampler.propose(np.random.default_rng(seed), tumour, ()) for seed in range(40)]
            fit = [p is not None and sampler.reader.read(pair, p.read) is not None for p in proposals]
            assert np.mean(fit) >= share


def test_tumour_is_anywhere_in_the_patch(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "tumor_1", [(560, 400, 580, 420)])
    found = filled_batches([pair], replace(CONFIG, batch_tumor_ratio=1.0), 200)
    labels = np.stack([labels for _, labels, _ in found]).reshape(-1, 4, 16, 4, 16)
    share = labels.mean(axis=(0, 2, 4))  # of tumour in each 16th of the patches
    assert share.min() > 0.6 * share.max()


def test_proposals_are_checked_on_the_label(pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch) -> None:
    def everywhere(opened: OpenPair, level: int) -> Regions:
        regions = find_regions(opened, level)
        cells = PixelSet(np.ones(regions.free.shape, bool))
        return replace(regions, tumour=cells, free=cells)

    monkeypatch.setattr("samplers.surf.find_regions", everywhere)
    for _, labels, patches in filled_batches(pairs[:2], replace(CONFIG, img_size=150), 20):
        assert (
            [label.any() for label in labels]
            == [patch.tumour for patch in patches]
            == [True, True, False, False]
        )


def test_ranks_that_share_a_slide_draw_other_patches(pairs: list[SlidePair]) -> None:
    first, second = (filled_batches(pairs[:1], CONFIG, 2, rank, 2) for rank in (0, 1))
    assert all(a[2] != b[2] for a, b in zip(first, second))


class FailingReads:
    """Stands for Slide.read: the first `failures` reads of a slide fail."""

    def __init__(self, name: str, failures: int, error: type[Exception]) -> None:
        self.name, self.failures, self.error = name, failures, error
        self.read = Slide.read

    def __call__(self, slide: Slide, *arguments: int) -> np.ndarray:
        if slide.path.stem == self.name and self.failures > 0:
            self.failures -= 1
            raise self.error(f"{slide.path}: torn")
        return self.read(slide, *arguments)


def with_failures(
    monkeypatch: pytest.MonkeyPatch, name: str, failures: int, error: type[Exception] = ReadError
) -> FailingReads:
    failing = FailingReads(name, failures, error)
    monkeypatch.setattr(Slide, "read", lambda slide, *arguments: failing(slide, *arguments))
    return failing


def test_a_read_that_fails_once_is_tried_again(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = filled_batches(pairs, CONFIG, 5)
    failing = with_failures(monkeypatch, "tumor_1", 1)
    for (images, _, patches), other in zip(filled_batches(pairs, CONFIG, 5), expected):
        assert patches == other[2]
        np.testing.assert_array_equal(images, other[0])
    assert failing.failures == 0


@pytest.mark.parametrize("error", [ReadError, ZeroDivisionError])
def test_a_slide_that_fails_is_counted_and_replaced(
    error: type[Exception], pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_failures(monkeypatch, "tumor_1", 10**9, error)
    with training_loader(pairs, CONFIG, 0, 1, processes=0) as loader:
        for batch, _ in zip(loader, range(8)):
            assert [p.tumour for p in batch.patches] == [True, True, False, False]
            assert "tumor_1" not in {p.slide for p in batch.patches}
        assert "torn" in loader.dropped["tumor_1"][0]
    config = replace(CONFIG, max_bad_slides=0)
    loader = training_loader(pairs, config, 0, 1, processes=0)
    with pytest.raises(SamplerError, match=r"1 slides could not be read, 0 are allowed"):
        list(zip(loader, range(8)))


def test_bad_slides_allowed_are_a_number_or_a_part() -> None:
    allowed = [replace(CONFIG, max_bad_slides=m).bad_slides_allowed(300) for m in (0, 0.01, 0.001, 1, 7)]
    assert allowed == [0, 3, 1, 1, 7]


def test_a_slide_smaller_than_a_patch_is_named_with_both_sizes(pairs: list[SlidePair]) -> None:
    with pytest.raises(DataError, match=r"tumor_1.tif: 1000 × 700 pixels are smaller .* 704 × 704"):
        OpenPair(pairs[0], replace(CONFIG, img_size=704))


def test_regions_are_kept_for_other_processes(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(surf, "_MIN_KEPT", 0)
    look = Mock(side_effect=surf._places)
    monkeypatch.setattr(surf, "_places", look)
    opened = [OpenPair(pair, CONFIG) for pair in pairs]

    def regions(level: int = 1) -> list[tuple[tuple[float, float], bytes, bytes]]:
        found = [find_regions(one, level) for one in opened]
        return [(one.cell, one.tumour._rows.tobytes(), one.free._rows.tobytes()) for one in found]

    expected = regions()
    assert regions() == expected
    assert look.call_count == len(pairs)
    regions(level=0)
    assert look.call_count == 2 * len(pairs)
    monkeypatch.setenv("CACHE_DIR", "")
    assert regions() == expected


def test_the_regions_of_small_slides_are_not_kept(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    find_regions(OpenPair(pairs[0], CONFIG), 1)
    assert list(tmp_path.iterdir()) == []
