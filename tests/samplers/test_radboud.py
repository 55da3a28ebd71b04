"""Radboud: uniform points in annotations, their weighting, patches at a spacing with their label."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import shapely

from samplers import PatchInfo, SamplerConfig, SamplerError, SlidePair, radboud, training_loader
from samplers.labels.label import LabelMap
from samplers.radboud import RadboudSampler, random_point, weights
from tests.helpers.lesion_slides import LESION_RED, SPACING, make_slide

CONFIG = SamplerConfig("radboud", img_size=48, batch_size=4, resolution=SPACING)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[SlidePair]:
    folder = tmp_path_factory.mktemp("radboud")
    return [
        make_slide(folder, "tumor_1", mask_downsamples=(1, 2)),
        make_slide(folder, "tumor_2", [(0, 330, 90, 400), (950, 0, 960, 8)], label="xml", downsamples=(1, 5)),
        make_slide(folder, "normal_1", [], label=None),
    ]


def batches(
    pairs: list[SlidePair], config: SamplerConfig, count: int, rank: int = 0, size: int = 1
) -> list[tuple[np.ndarray, np.ndarray, list[PatchInfo]]]:
    with training_loader(pairs, config, rank, size, processes=0) as loader:
        return [(batch.images, batch.labels, batch.patches) for batch, _ in zip(loader, range(count))]


@pytest.mark.parametrize("scale", [1.0, 1.7, 3.0, 4.1])
def test_patches_hold_the_annotation_at_every_spacing(pairs: list[SlidePair], scale: float) -> None:
    config = replace(CONFIG, resolution=scale * SPACING)
    for images, labels, patches in batches(pairs, config, 12):
        for image, label, patch in zip(images, labels, patches):
            assert patch.slide != "normal_1"
            assert label.any()
            assert patch.size_l0 == int(np.ceil(48 * scale - 1e-9))
            lesion = image[:, :, 0] == LESION_RED
            if scale == 1:
                np.testing.assert_array_equal(label > 0, lesion)
            # Resampling mixes colours within a pixel of the outline, which is half a pixel off at most.
            inner, outer = cv2.erode(label, np.ones((5, 5))) > 0, cv2.dilate(label, np.ones((5, 5))) > 0
            assert lesion[1:-1, 1:-1][inner[1:-1, 1:-1]].all()
            assert not lesion[1:-1, 1:-1][~outer[1:-1, 1:-1]].any()


def test_points_are_uniform_in_a_ring() -> None:
    ring = shapely.Point(0, 0).buffer(10).difference(shapely.Point(0, 0).buffer(8))
    rng = np.random.default_rng(0)
    points = np.array([random_point(ring, rng) for _ in range(2000)])
    assert shapely.contains_xy(ring, *points.T).all()
    angles = np.histogram(np.arctan2(*points.T), bins=8, range=(-np.pi, np.pi))[0]
    assert np.abs(angles - 250).max() < 60
    assert abs((np.hypot(*points.T) < 9).mean() - 17 / 36) < 0.05


def test_points_are_uniform_in_two_threads_that_no_random_point_hits() -> None:
    threads = shapely.MultiPolygon([shapely.box(0, 0, 1000, 1e-7), shapely.box(0, 1000, 500, 1000 + 1e-7)])
    rng = np.random.default_rng(0)
    points = np.array([random_point(threads, rng) for _ in range(300)])
    assert (shapely.distance(threads, shapely.points(points)) < 1e-6).all()
    assert abs((points[:, 1] < 1).mean() - 2 / 3) < 0.1
    assert abs((points[:, 0] < 250).mean() - 1 / 3) < 0.1


def test_a_polygon_of_no_width_gives_a_point_of_it() -> None:
    sliver = shapely.Polygon([(0, 0), (1e6, 1), (2e6, 2 + 1e-9)])
    x, y = random_point(sliver, np.random.default_rng(0))
    assert abs(y - x * 1e-6) < 1e-3


def test_weights_by_class_number_and_area() -> None:
    values, areas = np.array([1, 1, 1, 2, 0]), np.array([1.0, 2.0, 5.0, 10.0, 2.0])
    everything = np.ones(5, bool)
    np.testing.assert_allclose(weights("balanced", values, areas, everything), np.array([1, 1, 1, 3, 3]) / 9)
    np.testing.assert_allclose(weights("count", values, areas, everything), np.full(5, 0.2))
    np.testing.assert_allclose(weights("area", values, areas, everything), areas / 20)
    without = np.array([True, False, True, False, True])
    np.testing.assert_allclose(weights("balanced", values, areas, without), [0.25, 0, 0.25, 0, 0.5])
    with pytest.raises(ValueError, match="'fair' is not one of balanced, count, area"):
        weights("fair", values, areas, everything)


def test_weighting_shows_in_what_is_drawn(tmp_path: Path) -> None:
    big, small = (100, 200, 300, 400), (600, 300, 610, 310)  # areas 40 000 and 100
    pair = make_slide(tmp_path, "s", [big, small], label="xml")
    assert pair.label is not None
    groups = iter(("cancer", "cyst"))
    pair.label.write_text(re.sub("Tumor", lambda _: next(groups), pair.label.read_text()))
    config = replace(CONFIG, label_map=LabelMap.parse(["cancer:1", "cyst:2"]))
    for weighting, least, most in (("balanced", 60, 140), ("count", 60, 140), ("area", 0, 6)):
        chosen = replace(config, annotation_weighting=weighting)
        drawn = Counter(int(label.max()) for _, labels, _ in batches([pair], chosen, 50) for label in labels)
        assert least <= drawn[2] <= most, weighting


def test_a_class_0_annotation_can_be_wanted(pairs: list[SlidePair]) -> None:
    config = replace(CONFIG, label_map=LabelMap.parse(["Tumor:0"]))
    for _, labels, patches in batches(pairs[1:2], config, 4):
        assert not labels.any()
        assert {patch.slide for patch in patches} == {"tumor_2"}


def test_a_class_0_annotation_is_no_tumour_where_there_is_some(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, "s", [(100, 200, 200, 300), (600, 300, 700, 400)], label="xml")
    assert pair.label is not None
    groups = iter(("Tumor", "normal"))
    pair.label.write_text(re.sub("Tumor", lambda _: next(groups), pair.label.read_text()))
    config = replace(CONFIG, label_map=LabelMap.parse(["Tumor:1", "normal:0"]))
    for size in (1, 2):
        for _, labels, _ in batches([pair], config, 20, size - 1, size):
            assert labels.any(axis=(1, 2)).all()


def test_a_share_whose_lesion_is_too_small_a_part_of_a_patch_leaves_its_rank_to_all_slides(
    tmp_path: Path,
) -> None:
    """Of a slide that is annotated in part only the outlines are known: less than --min_known of any patch."""
    whole = make_slide(tmp_path, "tumor_1", [(100, 100, 300, 300)], label="xml")
    part = make_slide(tmp_path, "tumor_2", [(500, 300, 510, 310)], label="xml")
    pairs = [whole, replace(part, partly_annotated=True)]
    for sampler in ("radboud", "surf"):
        config = replace(CONFIG, sampler=sampler)
        for rank in (0, 1):
            drawn = {patch.slide for _, _, some in batches(pairs, config, 3, rank, 2) for patch in some}
            assert drawn == {"tumor_1"}, (sampler, rank)
    with pytest.raises(SamplerError, match=r"less than --min_known 0\.1 of a patch is known"):
        batches(pairs[1:], CONFIG, 1)


def test_the_rest_of_the_batch_is_other_tissue_of_all_slides(pairs: list[SlidePair]) -> None:
    found = []
    for _, labels, patches in batches(pairs, replace(CONFIG, batch_tumor_ratio=0.5), 20):
        assert labels.any(axis=(1, 2)).tolist() == [True, True, False, False]
        found += patches
    assert {patch.slide for patch in found if patch.tumour} == {"tumor_1", "tumor_2"}
    assert {patch.slide for patch in found if not patch.tumour} == {"tumor_1", "tumor_2", "normal_1"}


def test_a_batch_depends_on_seed_rank_and_index_alone(pairs: list[SlidePair]) -> None:
    config = replace(CONFIG, augment=True)
    first = batches(pairs, config, 4)
    with training_loader(pairs, config, 0, 1, processes=2, start=1) as loader:
        for batch, (images, labels, patches) in zip(loader, first[1:]):
            np.testing.assert_array_equal(batch.images, images)
            np.testing.assert_array_equal(batch.labels, labels)
            assert batch.patches == patches
    assert batches(pairs, config, 1, rank=1)[0][2] != first[0][2]
    assert batches(pairs, replace(config, seed=3), 1)[0][2] != first[0][2]


def test_slides_without_annotation_leave_their_rank_to_all_slides(
    pairs: list[SlidePair], tmp_path: Path
) -> None:
    slides = [pairs[0], make_slide(tmp_path, "empty_1", [], label="xml")]
    for rank in (0, 1):
        assert {p.slide for _, _, patches in batches(slides, CONFIG, 2, rank, 2) for p in patches} == {
            "tumor_1"
        }


def test_no_annotation_at_all_is_an_error(pairs: list[SlidePair]) -> None:
    with pytest.raises(SamplerError, match="none of the 1 training slides has an annotation"):
        batches(pairs[2:], CONFIG, 1)


def test_a_label_that_cannot_be_read_is_counted_and_left_out(pairs: list[SlidePair], tmp_path: Path) -> None:
    broken = make_slide(tmp_path, "broken_1", label="xml")
    assert broken.label is not None
    broken.label.write_text("<ASAP_Annotations>")
    sampler = RadboudSampler([broken, *pairs], CONFIG, 0, 1)
    images, labels = np.empty((4, 48, 48, 3), np.uint8), np.empty((4, 48, 48), np.uint8)
    filled = sampler.fill(0, images, labels)
    assert "broken_1" not in {patch.slide for patch in filled.patches}
    assert list(filled.failed) == ["broken_1"]


def test_classes_and_areas_are_kept_for_other_workers_and_polygons_are_read_when_they_are_drawn(
    pairs: list[SlidePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [patches for *_, patches in batches(pairs, CONFIG, 6)]
    read = Mock(side_effect=radboud._classes)
    monkeypatch.setattr(radboud, "_classes", read)
    monkeypatch.setattr(radboud, "_MIN_KEPT", 0)
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    for _ in range(2):
        assert [patches for *_, patches in batches(pairs, CONFIG, 6)] == expected
    assert read.call_count == 2  # of the slides with a label, once
    monkeypatch.setattr("samplers.reader.MAX_BYTES", 1)  # one slide is open at a time
    assert [patches for *_, patches in batches(pairs, CONFIG, 6)] == expected


def test_a_slide_that_vanished_after_its_classes_were_kept_is_a_bad_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(radboud, "_MIN_KEPT", 0)
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "kept"))
    pairs = [make_slide(tmp_path, name) for name in ("tumor_1", "tumor_2")]
    batches(pairs, CONFIG, 1)
    sampler = RadboudSampler(pairs, CONFIG, 0, 1)
    sampler.reader.close()
    pairs[0].slide.unlink()
    images, labels = np.empty((4, 48, 48, 3), np.uint8), np.empty((4, 48, 48), np.uint8)
    filled = [sampler.fill(index, images, labels) for index in range(4)]
    assert {patch.slide for found in filled for patch in found.patches} == {"tumor_2"}
    assert any("tumor_1" in found.failed for found in filled)
