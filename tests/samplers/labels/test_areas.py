"""Many areas at once become what each of them becomes alone; and many thousands of them take seconds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samplers.labels import polygons
from samplers.labels.annotations import read_areas
from samplers.labels.areas import AnnotatedArea, _valid_geometry, not_ignored, valid_geometries
from samplers.labels.label import IGNORED, LabelMap, PolygonLabel
from tests.samplers.labels.test_annotations import asap, geojson

SIZE = (60, 50)
POINT = st.tuples(st.integers(-5, 65), st.integers(-5, 55))
RING = st.lists(POINT, max_size=9).map(lambda points: np.array(points, np.float64).reshape(-1, 2))


@given(outlines=st.lists(st.lists(RING, max_size=3), max_size=6))
@example(outlines=[[np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * 1e-200]])  # valid, but its area is 0
@settings(max_examples=150, deadline=None)
def test_many_outlines_become_what_each_becomes_alone(outlines: list[list[np.ndarray]]) -> None:
    expected = [_valid_geometry(rings) for rings in outlines]
    found = valid_geometries(outlines)
    assert [area and area.wkb for area in found] == [area and area.wkb for area in expected]


@st.composite
def areas(draw: st.DrawFn) -> list[AnnotatedArea]:
    """Boxes of several groups that lie over each other and beyond the slide."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        (left, top), (right, bottom) = draw(POINT), draw(POINT)
        box = shapely.box(min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        if box.area and box.intersects(shapely.box(0, 0, *SIZE)):
            found.append(AnnotatedArea(draw(st.sampled_from("abcd")), box))
    return found


@given(areas=areas(), unannotated=st.sampled_from([0, IGNORED]))
@settings(max_examples=150, deadline=None)
def test_what_is_seen_of_areas_is_what_is_painted(areas: list[AnnotatedArea], unannotated: int) -> None:
    label_map = LabelMap((("a", 1), ("b", 0), ("c", IGNORED), ("d", 2)), unannotated)
    label = PolygonLabel(SIZE, areas, label_map, "a.xml")
    painted = np.full(SIZE[::-1], unannotated, np.uint8)
    for group, value in label_map.groups:
        for area in areas:
            left, top, right, bottom = (max(0, int(number)) for number in area.geometry.bounds)
            if area.group == group:
                painted[top:bottom, left:right] = value
    np.testing.assert_array_equal(label.read_at(0, 0, *SIZE, 1.0), painted)
    values, counts = np.unique(painted, return_counts=True)
    found = {value: area for value, area in label.areas().items() if area}
    assert found == pytest.approx(dict(zip(values.tolist(), counts.tolist())))
    seen = np.zeros_like(painted)
    for annotation in label.annotations():
        assert annotation.value != IGNORED
        pixels = polygons.fill(polygons.edges_of(annotation.polygon), 0, 0, *SIZE, 1.0)
        assert (painted[pixels] == annotation.value).all()
        seen |= pixels
    np.testing.assert_array_equal(seen[painted != unannotated], (painted != IGNORED)[painted != unannotated])


@given(areas=areas(), unannotated=st.sampled_from([0, IGNORED]))
@settings(max_examples=100, deadline=None)
def test_a_thumbnail_is_painted_area_by_area(areas: list[AnnotatedArea], unannotated: int) -> None:
    label_map = LabelMap((("a", 1), ("b", 0), ("c", IGNORED), ("d", 2)), unannotated)
    order = {group: place for place, (group, _) in enumerate(label_map.groups)}
    used = sorted(areas, key=lambda area: order[area.group])
    classes = np.full((13, 17), unannotated, np.uint8)
    scale = np.array([[17 / SIZE[0]], [13 / SIZE[1]]] * 2)
    for area in not_ignored(used, [area.group == "c" for area in used]):
        value = label_map.groups[order[area.group]][1]
        edges = polygons.edges_of(area.geometry) * scale
        filled, border = (paint(edges, 0, 0, 17, 13, 1.0) for paint in (polygons.fill, polygons.touched))
        if value in (0, IGNORED):
            classes[filled & ~border] = value
            classes[border & (classes == IGNORED)] = value
        else:
            classes[filled | border] = value
    label = PolygonLabel(SIZE, areas, label_map, "a.xml")
    np.testing.assert_array_equal(label.thumbnail(17, 13), classes)


@pytest.mark.parametrize("kind", ["xml", "geojson"])
def test_thousands_of_cells_take_a_moment(tmp_path: Path, kind: str) -> None:
    """90,000 of them took 100 s of the processor when each was looked at alone, and 7 s since."""
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 40
    centres = [np.array((100 * (i % 60) + 50, 100 * (i // 60) + 50)) for i in range(3600)]
    cells = [(circle + centre).round(2).tolist() for centre in centres]
    groups = ["Tumor", "Exclusion"] * 1800
    if kind == "xml":
        text = asap(*(("Polygon", group, points) for group, points in zip(groups, cells)))
    else:
        text = geojson(*(
            ({"classification": {"name": group}}, "Polygon", [points]) for group, points in zip(groups, cells)
        ))  # fmt: skip
    path = tmp_path / f"a.{kind}"
    path.write_text(text)
    begin = time.process_time()
    label = PolygonLabel((6000, 6000), read_areas(path, (0, 0))[0], LabelMap(), path.name)
    assert label.areas()[1] == pytest.approx(1800 * shapely.Polygon(circle).area, rel=1e-3)
    assert len(label.annotations()) == 3600
    assert label.thumbnail(500, 500).sum() > 1800
    assert time.process_time() - begin < 1.5
