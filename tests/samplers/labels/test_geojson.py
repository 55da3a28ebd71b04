"""What QuPath and others write into GeoJSON: objects of several types, and geometries that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from samplers.labels.annotations import read_areas, read_geojson
from samplers.slides.errors import DataError
from tests.samplers.labels.test_annotations import SQUARE, asap, ring, write

TUMOUR = {"classification": {"name": "Tumor"}}


def feature(geometry: Any, properties: Any = TUMOUR, **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": geometry, **more}


def polygon(*rings: Any, **more: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings), **more}


def read(tmp_path: Path, *features: Any) -> tuple[list[float], list[str]]:
    """The areas and what is left out."""
    text = json.dumps({"type": "FeatureCollection", "features": list(features)})
    areas, left_out = read_geojson(write(tmp_path, text, "a.geojson"))
    return [area.geometry.area for area in areas], left_out


def test_geojson_features_without_geometry_are_left_out(tmp_path: Path) -> None:
    bare = feature(None)
    del bare["geometry"]
    whole = feature(polygon(ring(0, 0, 4)))
    areas, left_out = read(tmp_path, feature(None), bare, whole, feature(polygon(ring(0, 0, 4)), None))
    assert areas == [16]
    assert [reason.partition(" has no ")[2] for reason in left_out] == ["geometry"] * 2 + ["classification"]


@pytest.mark.parametrize(
    "root",
    [
        feature(None, {}, id="PathRootObject"),
        feature(None, {"objectType": "root"}),
        feature(None, None, id="PathRootObject"),
    ],
)
def test_geojson_the_root_of_all_objects_is_nothing(tmp_path: Path, root: Any) -> None:
    assert read(tmp_path, root, feature(polygon(ring(0, 0, 4)))) == ([16], [])


@pytest.mark.parametrize(
    ("rings", "area"),
    [
        ([[], ring(5, 5, 10)], 0),  # a hole in nothing
        ([[[0, 0], [9, 9]], ring(5, 5, 10)], 0),
        ([[]], 0),
        ([], 0),
        ([ring(0, 0, 10), []], 100),
        ([ring(0, 0, 10), ring(20, 0, 3)], 100),  # a hole beside it
        ([ring(0, 0, 10), ring(8, 0, 4)], 100 - 2 * 4),  # half of the hole lies outside
        ([ring(0, 0, 10), ring(1, 1, 4), ring(3, 3, 4)], 100 - 16 - 16 + 4),  # holes that overlap
        ([ring(0, 0, 10), ring(0, 0, 10)], 0),
    ],
)
def test_geojson_holes_only_take_away(tmp_path: Path, rings: Any, area: float) -> None:
    for geometry in (polygon(*rings), {"type": "MultiPolygon", "coordinates": [rings]}):
        areas, left_out = read(tmp_path, feature(geometry))
        assert sum(areas) == area
        assert bool(left_out) == (area == 0)


def test_geojson_what_is_detected_is_no_annotation(tmp_path: Path) -> None:
    square = polygon(ring(0, 0, 4))
    kinds = ["detection", "cell", "tile", "tmaCore", "TMA core"]
    others = [feature(square, {**TUMOUR, "objectType": kind}) for kind in kinds]
    others += [
        feature(square, {**TUMOUR, "object_type": "tile"}),
        feature(square, TUMOUR, id="PathTileObject"),
    ]
    others += [feature(square, TUMOUR, nucleusGeometry=square)]
    taken = [feature(square, {**TUMOUR, key: "annotation"}) for key in ("objectType", "object_type")]
    taken += [feature(square, TUMOUR, id="PathAnnotationObject"), feature(square, TUMOUR, id="0a1b-…")]
    areas, left_out = read(tmp_path, *others, *taken)
    assert areas == [16] * 4
    assert left_out == [
        "a.geojson: objects that are no annotations: 1 of the type TMA core, 2 of the type cell, 1 of the type "
        "detection, 3 of the type tile, 1 of the type tmaCore"
    ]


def test_geojson_ellipses_are_those_of_their_bounds(tmp_path: Path) -> None:
    box = [[0, 0], [40, 0], [40, 20], [0, 20], [0, 0]]
    for marked in (
        feature(polygon(box, isEllipse=True)),
        feature(polygon(box), {**TUMOUR, "isEllipse": True}),
    ):
        assert read(tmp_path, marked)[0] == [pytest.approx(math.pi * 20 * 10, rel=1e-3)]
    assert read(tmp_path, feature(polygon(box, isEllipse=False)))[0] == [800]


@pytest.mark.parametrize(
    "name", ["Tumor", ["Tumor"], {"names": ["Tumor"]}, {"name": "Tumor", "color": [1, 2, 3]}]
)
def test_geojson_names_of_classes(tmp_path: Path, name: Any) -> None:
    text = json.dumps(feature(polygon(ring(0, 0, 4)), {"classification": name}))
    assert [a.group for a in read_geojson(write(tmp_path, text, "a.geojson"))[0]] == ["Tumor"]


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = {"type": "GeometryCollection", "geometries": [inner]}
    return inner


def test_geojson_collections_in_collections(tmp_path: Path) -> None:
    square = polygon(ring(0, 0, 4))
    both = {"type": "GeometryCollection", "geometries": [square, nested(3, square)]}
    assert read(tmp_path, feature(both)) == ([16, 16], [])
    with pytest.raises(DataError, match=r"a\.geojson.*more than 16 deep"):
        read(tmp_path, feature(nested(30, square)))
    deep = '{"type": "GeometryCollection", "geometries": [' * 50_000 + "]}" * 50_000
    text = '{"type": "Feature", "properties": null, "geometry": ' + deep + "}"
    with pytest.raises(DataError, match=r"a\.geojson"):
        read_geojson(write(tmp_path, text, "a.geojson"))


@pytest.mark.parametrize(
    "geometry",
    [3, "x", [1], nested(1, 3), nested(1, None), nested(2, [1]), polygon([[1], [2], [3], [4]]),
     polygon([[10**400, 1]] * 4), polygon([[None, 1]] * 4), polygon([5, 6, 7]), polygon(7),
     {"type": "Polygon", "coordinates": {"a": 1}}, {"type": "MultiPolygon", "coordinates": [3]}],
)  # fmt: skip
def test_geojson_geometries_of_another_kind_are_named(tmp_path: Path, geometry: Any) -> None:
    with pytest.raises(DataError, match=r"a\.geojson"):
        read(tmp_path, feature(geometry))


def test_geojson_is_moved_by_the_origin_of_qupath_and_asap_is_not(tmp_path: Path) -> None:
    text = json.dumps(feature(polygon(ring(0, 0, 20), ring(5, 5, 10))))
    (area,), _ = read_areas(write(tmp_path, text, "a.geojson"), (100, 2000))
    assert area.geometry.bounds == (100, 2000, 120, 2020)
    assert (area.group, area.geometry.area) == ("Tumor", 300)
    (area,), _ = read_areas(write(tmp_path, asap(("Polygon", "_0", SQUARE)), "a.xml"), (100, 2000))
    assert area.geometry.bounds == (10, 10, 30, 30)
    assert read_areas(write(tmp_path, "[]", "a.json"), (100, 2000)) == ([], [])
