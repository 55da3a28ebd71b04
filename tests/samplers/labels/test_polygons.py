from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.labels.polygons import cover, edges_of, edges_of_all, fill, touched, trace

SIDE = 32


@st.composite
def areas(draw: st.DrawFn) -> shapely.Geometry:
    """Valid polygons of random points, often on pixel edges or centres, with holes, in several parts."""
    step = draw(st.sampled_from([1.0, 0.5, 0.25, 0.1]))
    number = st.integers(-20, int((SIDE + 20) / step)).map(lambda v: v * step)
    points = draw(st.lists(st.tuples(number, number), min_size=3, max_size=12))
    geometry = shapely.make_valid(shapely.Polygon(points))
    return shapely.MultiPolygon([p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon"])


@given(area=areas(), window=st.tuples(*[st.integers(0, SIDE - 1)] * 4), scale=st.sampled_from([0.5, 1, 2, 4]))
@settings(max_examples=150, deadline=None)
def test_a_pixel_does_not_depend_on_the_window(
    area: shapely.Geometry, window: tuple[int, int, int, int], scale: float
) -> None:
    edges = edges_of(area)
    whole = fill(edges, -8, -8, SIDE + 16, SIDE + 16, scale)
    left, right = sorted(window[:2])
    top, bottom = sorted(window[2:])
    part = fill(edges, -8 + left * scale, -8 + top * scale, right - left + 1, bottom - top + 1, scale)
    np.testing.assert_array_equal(part, whole[top : bottom + 1, left : right + 1])


@given(area=areas())
@settings(max_examples=60, deadline=None)
def test_pixels_are_inside_as_their_centres(area: shapely.Geometry) -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    pixels = fill(edges_of(area), 0, 0, SIDE, SIDE, 1)
    border = shapely.dwithin(area.boundary, shapely.points(x, y), 1e-9)  # may go either way
    assert (pixels == shapely.contains_xy(area, x, y))[~border].all()


@given(area=areas(), other=areas())
@settings(max_examples=30, deadline=None)
def test_neighbours_share_no_pixel(area: shapely.Geometry, other: shapely.Geometry) -> None:
    """A pixel whose centre lies on a common edge belongs to one of the two."""
    inside, outside = area.intersection(other), area.difference(other)
    filled = [fill(edges_of(part), 0, 0, SIDE, SIDE, 1) for part in (inside, outside, area)]
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    clear = ~shapely.dwithin(shapely.union_all([area.boundary, other.boundary]), shapely.points(x, y), 1e-9)
    assert not (filled[0] & filled[1])[clear].any()
    np.testing.assert_array_equal((filled[0] | filled[1])[clear], filled[2][clear])


def test_known_pixels() -> None:
    square_with_hole = shapely.box(1, 1, 6, 5).difference(shapely.box(2, 2, 4, 4))
    found = fill(edges_of(square_with_hole), 0, 0, 7, 6, 1).astype(int)
    expected = np.zeros((6, 7), int)
    expected[1:5, 1:6] = 1
    expected[2:4, 2:4] = 0
    np.testing.assert_array_equal(found, expected)


def test_nothing_to_fill() -> None:
    assert not fill(edges_of(shapely.Polygon()), 0, 0, 5, 4, 1).any()
    assert not fill(edges_of(shapely.box(100, 100, 120, 120)), 0, 0, 5, 4, 1).any()
    assert fill(edges_of(shapely.box(-100, -100, 120, 120)), 0, 0, 5, 4, 1).all()


@given(area=areas())
@settings(max_examples=40, deadline=None)
def test_touched_and_filled_cover_all_that_is_covered(area: shapely.Geometry) -> None:
    edges = edges_of(area)
    covered = fill(edges, 0, 0, SIDE, SIDE, 1) | touched(edges, 0, 0, SIDE, SIDE, 1)
    rows, columns = np.nonzero(~covered)
    cells = shapely.box(columns, rows, columns + 1, rows + 1)
    assert shapely.area(shapely.intersection(cells, area)).max(initial=0) < 1 / 8


@given(several=st.lists(areas(), max_size=4))
@settings(max_examples=50, deadline=None)
def test_many_at_once_cover_what_each_of_them_covers(several: list[shapely.Geometry]) -> None:
    edges, begins = edges_of_all(np.array(several, object))
    found = cover(edges, np.repeat(np.arange(len(several)), np.diff(begins)), SIDE + 5, SIDE)
    filled, border, within = np.zeros((3, SIDE, SIDE + 5), bool)
    for number, area in enumerate(several):
        own = edges[:, begins[number] : begins[number + 1]]
        np.testing.assert_array_equal(own, edges_of(area))
        inside, outline = (paint(own, 0, 0, SIDE + 5, SIDE, 1) for paint in (fill, touched))
        filled |= inside
        border |= outline
        within |= inside & ~outline
    for pixels, expected in zip(found, (filled, border, within)):
        np.testing.assert_array_equal(pixels, expected)


def test_regions_become_polygons_along_pixel_edges() -> None:
    classes = np.zeros((6, 8), np.uint8)
    classes[1:5, 1:5] = 3
    classes[2, 2] = 0
    classes[5, 7] = 1
    (low, speck), (high, square) = trace(classes, classes > 0, (10.0, 20.0))
    assert (low, high) == (1, 3)
    assert speck.bounds == (70, 100, 80, 120)
    assert square.area == 15 * 200
    assert len(square.interiors) == 1
    assert trace(np.zeros((3, 3), np.uint8), np.zeros((3, 3), bool), (1.0, 1.0)) == []


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([(1.0, 1.0), (3.7, 2.9)]))
@settings(max_examples=100, deadline=None)
def test_polygons_are_the_regions_in_the_order_of_their_first_pixels(
    seed: int, scale: tuple[float, float]
) -> None:
    """Random pixels have holes, corners that touch and many regions; OpenCV labels regions row by row."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, rng.integers(1, 24, 2)).astype(np.uint8)
    classes = classes.repeat(rng.integers(1, 4), axis=0)
    expected = []
    for value in (1, 2):
        count, regions = cv2.connectedComponents((classes == value).astype(np.uint8), connectivity=4)
        expected += [(value, regions == number) for number in range(1, count)]
    found = trace(classes, classes > 0, scale)
    assert [value for value, _ in found] == [value for value, _ in expected]
    height, width = classes.shape
    x, y = (np.arange(width) + 0.5) * scale[0], (np.arange(height)[:, None] + 0.5) * scale[1]
    for (_, polygon), (_, pixels) in zip(found, expected):
        assert polygon.is_valid
        assert polygon.area == pytest.approx(pixels.sum() * scale[0] * scale[1], rel=1e-9)
        np.testing.assert_array_equal(shapely.contains_xy(polygon, x, y), pixels)


@pytest.mark.parametrize("downsample", [1.0, 2.5, 3.0])
def test_a_shared_edge_is_crossed_at_the_same_place(downsample: float) -> None:
    rng = np.random.default_rng(0)
    line = np.cumsum(rng.random((40, 2)) * [3, 0], axis=0) + rng.random((40, 2)) * 60
    line = line[np.argsort(line[:, 1])]
    left = shapely.make_valid(shapely.Polygon([(-99, line[0, 1]), *line, (-99, line[-1, 1])]))
    right = shapely.make_valid(shapely.Polygon([(999, line[-1, 1]), *line[::-1], (999, line[0, 1])]))
    a, b = (fill(edges_of(part), 0, 0, 90, 60, downsample) for part in (left, right))
    assert not (a & b).any()
