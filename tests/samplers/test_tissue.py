"""Tissue, and where patches fit, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.tissue import (
    PixelSet,
    cells_without,
    contrast_is_low,
    patch_origin,
    tissue_mask,
    window_sums,
)


def test_tissue_is_what_is_stained() -> None:
    thumbnail = np.full((60, 80, 3), 242, np.uint8)
    thumbnail[20:40, 30:60] = (200, 120, 180)
    thumbnail[5, 5] = (200, 120, 180)  # dust
    thumbnail[28:30, 40:42] = 242  # a lumen
    thumbnail[50:, :] = (4, 2, 6)  # ink, or the scanner's border
    expected = np.zeros((60, 80), bool)
    expected[20:40, 30:60] = True
    np.testing.assert_array_equal(tissue_mask(thumbnail, spacing_t=8.0), expected)


def test_tissue_is_not_closed_up_to_the_slides_edge() -> None:
    thumbnail = np.full((60, 60, 3), 242, np.uint8)
    thumbnail[3:40, 3:40] = (200, 120, 180)
    assert not tissue_mask(thumbnail, spacing_t=4.0)[:3].any()


@given(st.floats(0, 1000), st.integers(1, 500))
def test_a_patch_is_inside_of_the_slide_and_holds_its_point(centre: float, size: int) -> None:
    origin = patch_origin(centre, size, 1000)
    assert 0 <= origin <= 1000 - size
    assert origin - 1 <= centre <= origin + size + 1


def test_window_sums_are_those_of_the_windows() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((13, 17)) > 0.6
    rows, columns = np.array([-2, 0, 5]), np.array([0, 9, 16])
    sums = window_sums(mask, (rows, columns), (rows + 4, columns + 3))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            assert sums[i, j] == mask[max(y, 0) : y + 4, x : x + 3].sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(1.0, 9.7), st.integers(3, 40))
def test_patches_around_free_cells_meet_no_tumour(seed: int, cell: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((12, 15)) > 0.97
    width, height = int(15 * cell), int(12 * cell)
    size = min(size, width, height)
    cells = (width / 15, height / 12)
    for y, x in np.argwhere(cells_without(mask, cells, size, (width, height))):
        dx, dy = rng.random(2)
        left = patch_origin((x + dx) * cells[0], size, width)
        top = patch_origin((y + dy) * cells[1], size, height)
        rows = slice(int(top / cells[1]), int(np.ceil((top + size) / cells[1])))
        columns = slice(int(left / cells[0]), int(np.ceil((left + size) / cells[0])))
        assert not mask[rows, columns].any()


def test_cells_far_from_tumour_are_free() -> None:
    mask = np.zeros((20, 20), bool)
    mask[10, 10] = True
    free = cells_without(mask, (4.0, 4.0), 16, (80, 80))
    assert not free[8:13, 8:13].any()
    assert free[:6].all()
    assert free[:, 15:].all()


def test_pixel_set_draws_every_pixel_alike() -> None:
    mask = np.random.default_rng(1).random((9, 21)) > 0.7
    pixels, rng = PixelSet(mask), np.random.default_rng(2)
    assert len(pixels) == mask.sum()
    counts = np.zeros(mask.shape, int)
    for _ in range(200 * len(pixels)):
        x, y = pixels.draw(rng)
        counts[y, x] += 1
    assert not counts[~mask].any()
    assert counts[mask].min() > 130
    assert counts[mask].max() < 270


def test_an_empty_pixel_set_has_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="high <= 0"):
        PixelSet(np.zeros((3, 3), bool)).draw(np.random.default_rng(0))


@pytest.mark.parametrize(("deviation", "low"), [(5, True), (14.5, True), (15.5, False), (60, False)])
def test_contrast_below_15_is_low(deviation: float, low: bool) -> None:
    image = np.random.default_rng(3).normal(128, deviation, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    assert contrast_is_low(image) is low
