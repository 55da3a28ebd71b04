from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from samplers.labels.annotations import read_asap, read_geojson
from samplers.slides.errors import DataError

SQUARE = [(10, 10), (30, 10), (30, 30), (10, 30)]
BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'


def asap(*annotations: tuple[str, str, Sequence[tuple[Any, Any]]]) -> str:
    """An ASAP file of (type, group, points)."""
    text = "".join(
        f'<Annotation Name="a{i}" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}" />' for n, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for i, (kind, group, points) in enumerate(annotations)
    )
    groups = '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/></AnnotationGroups>'
    return (
        f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{text}</Annotations>{groups}</ASAP_Annotations>"
    )


def geojson(*features: tuple[Any, str, Any]) -> str:
    """A feature collection of (properties, geometry type, coordinates)."""
    items = [
        {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": coordinates}}
        for properties, kind, coordinates in features
    ]
    return json.dumps({"type": "FeatureCollection", "features": items})


def write(tmp_path: Path, text: str, name: str = "a.xml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_asap_polygon_rectangle_and_spline(tmp_path: Path) -> None:
    kinds = [("Polygon", "_0", SQUARE), ("Rectangle", "_2", SQUARE), ("Spline", "Tumor", SQUARE)]
    outlines, left_out = read_asap(write(tmp_path, asap(*kinds, ("Rectangle", "_1", SQUARE[::2]))))
    assert [o.group for o in outlines] == ["_0", "_2", "Tumor", "_1"]
    assert [o.geometry.area for o in outlines] == [400] * 4
    assert left_out == []


def test_asap_points_follow_their_order_and_locale(tmp_path: Path) -> None:
    text = asap(("Polygon", "_0", [("10,5", "10,0"), ("30,5", "30"), ("30,5", "10"), ("10,5", "30")]))
    swapped = text.replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"').replace('"x"', '"2"')
    (outline,), _ = read_asap(write(tmp_path, swapped))
    assert outline.geometry.bounds == (10.5, 10, 30.5, 30)
    assert outline.geometry.area == 400


@pytest.mark.parametrize("form", ["{}.0", "{},0", "{}.50", "{}", "+{}"])
def test_asap_order_is_a_number_of_any_form(tmp_path: Path, form: str) -> None:
    text = asap(("Polygon", "_0", [SQUARE[i] for i in (0, 2, 1, 3)]))  # as they stand here they cross
    for place, order in enumerate((10, 12, 11, 13)):
        text = text.replace(f'Order="{place}"', f'Order="{form.format(order)}"')
    (outline,), _ = read_asap(write(tmp_path, text))
    assert outline.geometry.area == 400


def test_asap_points_of_one_order_follow_the_file(tmp_path: Path) -> None:
    (outline,), _ = read_asap(
        write(tmp_path, re.sub('Order="."', 'Order="0"', asap(("Polygon", "_0", SQUARE))))
    )
    assert outline.geometry.area == 400


@pytest.mark.parametrize("order", ["", "x", "nan", "inf", "1.2.3"])
def test_asap_order_that_is_no_number_is_named(tmp_path: Path, order: str) -> None:
    text = asap(("Polygon", "_0", SQUARE)).replace('Order="2"', f'Order="{order}"')
    with pytest.raises(DataError, match=r"a\.xml.*annotation 0"):
        read_asap(write(tmp_path, text))


@pytest.mark.parametrize("group", [' PartOfGroup="None"', ' PartOfGroup=""', ' PartOfGroup="  "', ""])
def test_asap_outlines_of_no_group(tmp_path: Path, group: str) -> None:
    text = asap(("Polygon", "_0", SQUARE)).replace(' PartOfGroup="_0"', group)
    (outline,), _ = read_asap(write(tmp_path, text))
    assert outline.group == "None"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1", "windows-1252"])
def test_asap_encodings(tmp_path: Path, encoding: str) -> None:
    declared = encoding.replace("utf-8-sig", "utf-8")
    text = asap(("Polygon", "Läsion", SQUARE)).replace("'1.0'", f"'1.0' encoding='{declared}'")
    (tmp_path / "a.xml").write_bytes(text.replace("><", ">\r\n<").encode(encoding))
    assert [o.group for o in read_asap(tmp_path / "a.xml")[0]] == ["Läsion"]


def test_asap_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    deep = "<a>" * 100_000 + "</a>" * 100_000
    assert read_asap(write(tmp_path, f"<ASAP_Annotations>{deep}</ASAP_Annotations>")) == ([], [])


def test_asap_self_intersection_is_made_valid(tmp_path: Path) -> None:
    bow_tie = [(0, 0), (20, 20), (20, 0), (0, 20)]
    (outline,), _ = read_asap(write(tmp_path, asap(("Polygon", "_0", bow_tie))))
    assert outline.geometry.is_valid
    assert outline.geometry.area == 200


@pytest.mark.parametrize(
    ("kind", "points", "reason"),
    [
        ("Dot", [(1, 1)], "is a Dot"),
        ("PointSet", SQUARE, "is a PointSet"),
        ("Polygon", [], "no area \\(0 points\\)"),
        ("Polygon", [(1, 1)], "no area \\(1 points\\)"),
        ("Polygon", [(1, 1), (5, 5)], "no area"),
        ("Polygon", [(1, 1), (5, 5), (9, 9)], "no area"),
        ("Polygon", [(1, 1)] * 5, "no area"),
    ],
)
def test_asap_what_is_no_area_is_left_out(tmp_path: Path, kind: str, points: list, reason: str) -> None:
    outlines, left_out = read_asap(write(tmp_path, asap((kind, "_0", points), ("Polygon", "_1", SQUARE))))
    assert [o.group for o in outlines] == ["_1"]
    assert len(left_out) == 1
    assert re.search(rf"a\.xml: annotation 0 \('a0'\).*{reason}", left_out[0])


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "",
        "<ASAP_Annotations><Annotations>",
        "no XML",
        "<html/>",
        asap(("Polygon", "_0", [*SQUARE, ("NaN", 5)])),
        asap(("Polygon", "_0", [*SQUARE, ("inf", 5)])),
        asap(("Polygon", "_0", [*SQUARE, ("left", 5)])),
        asap(("Polygon", "_0", SQUARE)).replace(' Y="30"', ""),
        asap().replace("?>", " encoding='utf-32'?>"),
        asap().replace("?>", " encoding='klingon'?>"),
    ],
    ids=["bomb", "empty", "cut", "text", "html", "nan", "inf", "word", "no y", "utf-32", "no encoding"],
)
def test_asap_untrustworthy_files_are_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.xml"):
        read_asap(write(tmp_path, text))


def test_asap_without_annotations_is_empty(tmp_path: Path) -> None:
    assert read_asap(write(tmp_path, asap())) == ([], [])


def ring(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def test_geojson_holes_and_several_parts(tmp_path: Path) -> None:
    named = {"classification": {"name": "Tumor"}}
    polygon = (named, "Polygon", [ring(0, 0, 20), ring(5, 5, 10)])
    multi = ({"classification": "Exclusion"}, "MultiPolygon", [[ring(0, 0, 4)], [ring(10, 0, 4)]])
    outlines, left_out = read_geojson(write(tmp_path, geojson(polygon, multi), "a.geojson"))
    assert [(o.group, o.geometry.area) for o in outlines] == [("Tumor", 300), ("Exclusion", 32)]
    assert left_out == []


def test_geojson_feature_list_collection_and_derived_class(tmp_path: Path) -> None:
    collection = {
        "type": "GeometryCollection",
        "geometries": [{"type": "Polygon", "coordinates": [ring(0, 0, 4)]}],
    }
    feature = {
        "type": "Feature",
        "geometry": collection,
        "properties": {"classification": {"names": ["A", "B"]}},
    }
    for content in (feature, [feature]):
        (outline,), _ = read_geojson(write(tmp_path, json.dumps(content), "a.geojson"))
        assert (outline.group, outline.geometry.area) == ("A: B", 16)


def test_geojson_points_lines_and_unclassified_are_left_out(tmp_path: Path) -> None:
    named = {"classification": {"name": "Tumor"}}
    features = [
        (named, "Point", [3, 3]),
        (named, "LineString", ring(0, 0, 4)),
        ({}, "Polygon", [ring(0, 0, 9)]),
        (named, "Polygon", [ring(0, 0, 0)]),
    ]
    outlines, left_out = read_geojson(write(tmp_path, geojson(*features), "a.geojson"))
    assert outlines == []
    assert len(left_out) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"type": "FeatureCollection", "features": 3}',
        geojson(({"classification": "Tumor"}, "Polygon", [[[0, "a"], [1, 1], [2, 0]]])),
        geojson(({"classification": "Tumor"}, "Polygon", [[[0, float("nan")], [1, 1], [2, 0]]])),
        geojson(({"classification": "Tumor"}, "Polygon", 7)),
        geojson(({"classification": "Tumor"}, "MultiPolygon", None)),
        geojson(({"classification": "Tumor"}, "GeometryCollection", None)).replace(
            "coordinates", "geometries"
        ),
        geojson(({"classification": "Tumor"}, "GeometryCollection", [3])).replace(
            "coordinates", "geometries"
        ),
    ],
)
def test_geojson_untrustworthy_files_are_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.geojson"):
        read_geojson(write(tmp_path, text, "a.geojson"))
