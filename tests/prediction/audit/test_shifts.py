"""Offsets of annotations against predictions."""

from __future__ import annotations

import numpy as np
import pytest

from prediction.audit.maps import Maps
from prediction.audit.shifts import estimate_shift, moved_by
from samplers.labels.label_map import IGNORED


def ellipse(x: int, y: int, rx: int, ry: int) -> np.ndarray:
    ys, xs = np.indices((200, 240))
    return ((xs - x) / rx) ** 2 + ((ys - y) / ry) ** 2 <= 1


def maps_of(predicted: np.ndarray, annotated: np.ndarray, known: np.ndarray | None = None) -> Maps:
    classes = np.where(annotated, 1, 0).astype(np.uint8)
    if known is not None:
        classes[~known] = IGNORED
    probability = np.where(predicted, np.float32(0.95), np.float32(0.02))
    return Maps(probability, classes, classes != IGNORED, (0, 0), 4.0, 1.0)


LESION = ellipse(120, 100, 40, 25)


@pytest.mark.parametrize(("dx", "dy"), [(10, 0), (-7, 12), (30, -20), (0, -60)])
def test_the_offset_is_found_to_the_pixel(dx, dy):
    own = moved_by(LESION, -dx, -dy)
    found = estimate_shift(maps_of(LESION, own), own, 70, 0.5)
    assert (found.dx, found.dy) == (dx, dy)
    np.testing.assert_array_equal(found.moved, LESION)
    np.testing.assert_array_equal(found.changed, own != LESION)
    assert found.confidence == pytest.approx(0.93, abs=0.01)


@pytest.mark.parametrize(
    "own",
    [
        LESION,
        moved_by(LESION, 3, 0),  # less than a drawn line is wide
        ellipse(128, 104, 20, 10),  # inside of the prediction
        ellipse(112, 97, 60, 40),  # around it
        moved_by(LESION, 65, 0),  # farther than is looked
        LESION & (np.indices(LESION.shape)[1] < 110),  # a part of it
    ],
)
def test_what_is_not_shifted_has_no_offset(own):
    assert estimate_shift(maps_of(LESION, own), own, 40, 0.5) is None


def test_of_offsets_that_are_as_good_the_shortest_is_taken():
    predicted, own = np.zeros_like(LESION), np.zeros_like(LESION)
    predicted[80:120, 100:140], own[80:120, 85:115] = True, True  # it fits into the prediction at 15 to 25
    found = estimate_shift(maps_of(predicted, own), own, 60, 0.5)
    assert (found.dx, found.dy) == (15, 0)


def test_where_nothing_is_predicted_there_is_no_offset():
    assert estimate_shift(maps_of(np.zeros_like(LESION), LESION), LESION, 40, 0.5) is None


def test_a_lesion_that_is_annotated_otherwise_is_no_target():
    other = ellipse(60, 40, 30, 20)
    own = ellipse(130, 60, 30, 20)  # there is nothing
    assert estimate_shift(maps_of(other, own | other), own, 90, 0.5) is None
    assert estimate_shift(maps_of(other, own), own, 90, 0.5) is not None


def test_pixels_that_are_not_known_do_not_count():
    own = moved_by(LESION, 20, 0)
    unknown = ellipse(120, 100, 70, 60)
    assert estimate_shift(maps_of(LESION, own), own, 40, 0.5) is not None
    assert estimate_shift(maps_of(LESION, own, ~unknown), own & ~unknown | own, 40, 0.5) is None


def test_moving_fills_with_nothing():
    moved = moved_by(np.ones((4, 6), bool), 2, -1)
    assert moved[:3, 2:].all()
    assert not moved[3].any()
    assert not moved[:, :2].any()
