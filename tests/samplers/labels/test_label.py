from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.labels import mask as mask_module
from samplers.labels.label import IGNORED, Label, LabelMap, open_label
from samplers.slides.errors import DataError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import shrink, texture, write_levels
from tests.samplers.labels.test_annotations import SQUARE, asap, ring

LESION = [(20, 20), (120, 20), (120, 100), (20, 100)]
HOLE = [(50, 40), (80, 40), (80, 70), (50, 70)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    image = texture(210, 150)
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    return Slide(write_levels(path, [shrink(image, f) for f in (1, 3, 7)]))


def open_xml(tmp_path: Path, slide: Any, *annotations: Any, items: list[str] | None = None) -> Label:
    path = tmp_path / "a.xml"
    path.write_text(asap(*annotations))
    return open_label(path, slide, LabelMap.parse(items))


def blobs(seed: int = 0) -> np.ndarray:
    """A mask of 0, 1 and 2 with small and large regions: uint8 (150, 210)."""
    mask = np.zeros((150, 210), np.uint8)
    for x, y, w, h, value in np.random.default_rng(seed).integers(
        (0, 0, 1, 1, 1), (200, 140, 50, 40, 3), (9, 5)
    ):
        mask[y : y + h, x : x + w] = value
    return mask


def test_no_label_is_no_tumour(slide: Slide) -> None:
    label = open_label(None, slide, LabelMap())
    assert label.read_at(5, 6, 30, 20, 2.0).shape == (20, 30)
    assert not label.thumbnail(21, 15).any()
    assert label.annotations() == []
    with pytest.raises(ValueError, match="not inside"):
        label.read_at(200, 0, 30, 20, 1.0)


def test_exclusions_are_painted_after_lesions_whatever_the_file_says(tmp_path: Path, slide: Slide) -> None:
    label = open_xml(tmp_path, slide, ("Polygon", "_2", HOLE), ("Polygon", "_0", LESION))
    pixels = label.read_at(0, 0, 210, 150, 1.0)
    assert pixels.sum() == 100 * 80 - 30 * 30
    assert not pixels[40:70, 50:80].any()
    assert [(a.value, a.group, a.polygon.area) for a in label.annotations()] == [
        (1, "_0", 7100),
        (0, "_2", 900),
    ]


def test_the_label_map_says_order_and_class(tmp_path: Path, slide: Slide) -> None:
    annotations = [("Polygon", "_2", HOLE), ("Polygon", "_0", LESION), ("Polygon", "other", SQUARE)]
    label = open_xml(tmp_path, slide, *annotations, items=["_2:3", "_0:2"])
    assert np.unique(label.read_at(0, 0, 210, 150, 1.0)).tolist() == [0, 2]  # _0 covers _2
    assert [a.value for a in label.annotations()] == [2]
    assert "not in the label map: other" in label.unmapped
    assert label.remarks == [label.unmapped]
    label = open_xml(tmp_path, slide, *annotations, items=["_0:2", "_2:3"])
    assert (label.read_at(0, 0, 210, 150, 1.0) == 3).sum() == 900


def test_overlapping_lesions_do_not_cancel_out(tmp_path: Path, slide: Slide) -> None:
    label = open_xml(tmp_path, slide, ("Polygon", "_0", LESION), ("Polygon", "_0", HOLE))
    assert label.read_at(0, 0, 210, 150, 1.0).sum() == 8000


@given(x=st.integers(0, 180), y=st.integers(0, 120), size=st.integers(1, 30), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_patch_is_a_window_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, slide: Slide, x: int, y: int, size: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 5)))
    star = [tuple(p) for p in rng.random((30, 2)) * (260, 200) - 20]
    path = tmp_path_factory.mktemp("xml")
    label = open_xml(path, slide, ("Polygon", "_0", star), ("Polygon", "_2", HOLE), ("Polygon", "_1", LESION))
    whole = label.read_at(0, 0, 210, 150, 1.0)
    np.testing.assert_array_equal(label.read_at(x, y, size, size, 1.0), whole[y : y + size, x : x + size])
    thirds = label.read_at(0, 0, 70, 50, 3.0)
    np.testing.assert_array_equal(thirds, whole[1::3, 1::3])  # the same centres


def test_geojson_and_json_are_read(tmp_path: Path, slide: Slide) -> None:
    feature = {
        "type": "Feature",
        "properties": {"classification": {"name": "Tumor"}},
        "geometry": {"type": "Polygon", "coordinates": [ring(10, 10, 30), ring(15, 15, 10)]},
    }
    for name in ("a.geojson", "a.json"):
        (tmp_path / name).write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        label = open_label(tmp_path / name, slide, LabelMap())
        assert label.read_at(0, 0, 210, 150, 1.0).sum() == 800


def test_annotations_outside_of_the_slide(tmp_path: Path, slide: Slide) -> None:
    far = [(x + 5000, y) for x, y in SQUARE]
    half = [(x + 190, y) for x, y in SQUARE]
    label = open_xml(tmp_path, slide, ("Polygon", "_0", far), ("Polygon", "_0", half))
    assert label.read_at(0, 0, 210, 150, 1.0).sum() == 200
    assert [a.polygon.bounds for a in label.annotations()] == [(200, 10, 210, 30)]
    assert "1 annotations are outside" in label.left_out[0]
    with pytest.raises(DataError, match=r"a\.xml: all annotations are outside of the slide \(210 × 150"):
        open_xml(tmp_path, slide, ("Polygon", "_0", far))


@pytest.mark.parametrize(
    ("reach", "why"),
    [(2e5, "reaches 199790 pixels beyond the slide"), (1e7, "pixels beyond the slide"), (1e9, "1e\\+09 pixels"),
     (-1e12, "1e\\+12 pixels"), (1e308, "1e\\+308 pixels")],
)  # fmt: skip
def test_coordinates_far_beyond_the_slide_are_refused_at_once(
    tmp_path: Path, slide: Slide, reach: float, why: str
) -> None:
    triangle = [(10, 10), (reach, 10), (10, 90)]
    path = tmp_path / "a.geojson"
    geometry = {"type": "Polygon", "coordinates": [triangle]}
    path.write_text(
        json.dumps({"type": "Feature", "properties": {"classification": "T"}, "geometry": geometry})
    )
    started = time.process_time()
    with pytest.raises(DataError, match=rf"a\.geojson: .*{why}"):
        open_label(path, slide, LabelMap((("T", 1),)))
    with pytest.raises(DataError, match=rf"a\.xml: .*{why}"):
        open_xml(tmp_path, slide, ("Polygon", "_0", triangle))
    assert time.process_time() - started < 2


def test_an_annotation_may_reach_a_little_beyond_the_slide(tmp_path: Path, slide: Slide) -> None:
    around = [(-90_000, -90_000), (90_000, -90_000), (90_000, 90_000), (-90_000, 90_000)]
    label = open_xml(tmp_path, slide, ("Polygon", "_0", around))
    assert label.thumbnail(21, 15).all()
    assert label.read_at(0, 0, 210, 150, 1.0).all()


def test_no_annotations_are_no_tumour(tmp_path: Path, slide: Slide) -> None:
    label = open_xml(tmp_path, slide, ("Dot", "_0", [(3, 3)]))
    assert not label.read_at(0, 0, 210, 150, 1.0).any()
    assert label.annotations() == []


@pytest.mark.parametrize("name", ["a.xml", "a.tif", "a.txt", "missing.xml"])
def test_unusable_files_are_named(tmp_path: Path, slide: Slide, name: str) -> None:
    if "missing" not in name:
        (tmp_path / name).write_bytes(b"x" if name == "a.txt" else b"")
    with pytest.raises(DataError, match=name):
        open_label(tmp_path / name, slide, LabelMap())


def test_small_lesions_show_on_thumbnails(tmp_path: Path, slide: Slide) -> None:
    speck = [(100.1, 70.1), (100.3, 70.1), (100.2, 70.3)]
    by_xml = open_xml(tmp_path, slide, ("Polygon", "_0", speck))
    mask = np.zeros((150, 210), np.uint8)
    mask[70, 100] = 255
    by_mask = open_label(write_levels(tmp_path / "m.tif", [mask, shrink(mask, 7)]), slide, LabelMap())
    for label in (by_xml, by_mask):
        assert [tuple(p) for p in np.argwhere(label.thumbnail(21, 15))] == [(7, 10)]


@given(width=st.integers(1, 210), height=st.integers(1, 150), x=st.integers(0, 209), y=st.integers(0, 149))
@settings(max_examples=60, deadline=None)
def test_a_pixel_of_a_mask_shows_on_every_thumbnail(
    tmp_path_factory: pytest.TempPathFactory, slide: Slide, width: int, height: int, x: int, y: int
) -> None:
    mask = np.zeros((150, 210), np.uint8)
    mask[y, x] = 1
    label = open_label(write_levels(tmp_path_factory.mktemp("m") / "m.tif", [mask]), slide, LabelMap())
    thumbnail = label.thumbnail(width, height)
    centre = (int((y + 0.5) * height / 150), int((x + 0.5) * width / 210))
    assert thumbnail.shape == (height, width)
    assert thumbnail[centre]
    assert thumbnail.sum() <= 9


@pytest.mark.parametrize("unannotated", ["background", "ignore"])
@pytest.mark.parametrize("size", [(21, 15), (64, 48), (100, 71), (209, 149), (1, 1)])
@pytest.mark.parametrize("strip", [1, 40])
def test_a_pixel_of_a_thumbnail_is_the_largest_class_below_it(
    tmp_path: Path,
    slide: Slide,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    strip: int,
    unannotated: str,
) -> None:
    monkeypatch.setattr(mask_module, "_MAX_STRIP_PIXELS", 210 * strip)
    mask = np.zeros((150, 210), np.uint8)
    rng = np.random.default_rng(0)
    for value in (1, 2, 3, 0, 7):
        x, y = rng.integers(0, 150), rng.integers(0, 100)
        mask[y : y + 30, x : x + 45] = value
    label_map = LabelMap.parse(["1:2", "2:1", "3:0", "7:ignore"], unannotated)
    label = open_label(write_levels(tmp_path / "m.tif", [mask]), slide, label_map)
    classes = label_map.values()[mask].astype(int)
    classes[classes == IGNORED] = -1
    expected = np.zeros(size[::-1], int)
    for y, x in np.ndindex(*expected.shape):
        left, top = x * 210 // size[0], y * 150 // size[1]
        columns, rows = (
            whole // n if whole % n == 0 else whole // n + 2 for whole, n in zip((210, 150), size)
        )
        expected[y, x] = classes[top : top + rows, left : left + columns].max()
    np.testing.assert_array_equal(label.thumbnail(*size), np.where(expected < 0, IGNORED, expected))


def test_an_exclusion_hides_only_what_it_covers_whole(tmp_path: Path, slide: Slide) -> None:
    label = open_xml(tmp_path, slide, ("Polygon", "_0", LESION), ("Polygon", "_2", [(45, 40), *HOLE[1:]]))
    expected = np.zeros((15, 21), np.uint8)
    expected[2:11, 2:13] = 1  # the lesion; it only borders on the last row and column
    expected[5:7, 5:8] = 0  # the exclusion, from (45, 40) to (80, 70) with a slanted left side
    np.testing.assert_array_equal(label.thumbnail(21, 15), expected)


@pytest.mark.parametrize(("saved", "items"), [(255, None), (1, None), (2, ["2:1"]), (7, ["1:0", "7:2"])])
def test_mask_values(tmp_path: Path, slide: Slide, saved: int, items: list[str] | None) -> None:
    mask = np.zeros((150, 210), np.uint8)
    mask[30:60, 40:90] = saved
    label_map = LabelMap.parse(items)
    label = open_label(write_levels(tmp_path / "m.tif", [mask]), slide, label_map)
    value = label_map.groups[-1][1] if items else 1
    np.testing.assert_array_equal(label.read_at(35, 25, 60, 40, 1.0), (mask[25:65, 35:95] > 0) * value)


@given(x=st.integers(0, 150), y=st.integers(0, 100), w=st.integers(1, 20), h=st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_masks_with_other_levels_than_the_slide(
    tmp_path_factory: pytest.TempPathFactory, slide: Slide, x: int, y: int, w: int, h: int
) -> None:
    mask = blobs() > 0
    path = tmp_path_factory.mktemp("m") / "m.tif"
    levels = [shrink(mask.astype(np.uint8), f) for f in (1, 2, 5)]
    label = open_label(write_levels(path, levels, tile=16), slide, LabelMap())
    np.testing.assert_array_equal(label.read_at(x, y, w, h, 1.0), mask[y : y + h, x : x + w])
    # Level 0 gives thirds exactly: the slide's own level 1.
    x, y = x // 3 * 3, y // 3 * 3
    at_3 = label.read_at(x, y, w, h, 3.0)
    level_2 = shrink(mask, 2)  # the mask's next finer level, at the centres of the pixels
    rows, columns = ((start + (np.arange(n) + 0.5) * 3) / 2 for start, n in ((y, h), (x, w)))
    np.testing.assert_array_equal(at_3, level_2[np.ix_(rows.astype(int), columns.astype(int))])


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_a_mask_may_be_shrunk(tmp_path: Path, slide: Slide, factor: int) -> None:
    mask = blobs()
    path = write_levels(tmp_path / "m.tif", [shrink(mask, factor)], spacing=0.25 * factor, tile=16)
    label = open_label(path, slide, LabelMap.parse(["1:1", "2:2"]))
    small = shrink(mask, factor)
    np.testing.assert_array_equal(label.read_at(7 * factor, 0, 9, 9, float(factor)), small[:9, 7:16])
    full = np.repeat(np.repeat(small, factor, 0), factor, 1)
    np.testing.assert_array_equal(label.read_at(5, 6, 100, 90, 1.0), full[6:96, 5:105])


@pytest.mark.parametrize(
    ("size", "spacing"),
    [((210, 151), 0.25), ((105, 75), 0.25), ((105, 75), None), ((105, 80), 0.5), ((420, 300), 0.125)],
)
def test_a_mask_of_another_size_is_refused(
    tmp_path: Path, slide: Slide, size: tuple[int, int], spacing: float | None
) -> None:
    path = write_levels(tmp_path / "m.tif", [np.ones(size[::-1], np.uint8)], spacing=spacing)
    with pytest.raises(DataError, match=rf"{size[0]} × {size[1]}.*slide\.tif is 210 × 150"):
        open_label(path, slide, LabelMap())


def test_regions_of_a_mask_are_its_annotations(tmp_path: Path, slide: Slide) -> None:
    mask = blobs()
    mask[20:60, 100:140] = 1
    mask[30:40, 110:120] = 0
    mask[60:70, 140:150] = 1  # touches the other by a corner only
    label = open_label(write_levels(tmp_path / "m.tif", [mask]), slide, LabelMap.parse(["1:1", "2:2"]))
    annotations = label.annotations()
    assert all(a.polygon.is_valid and a.polygon.geom_type == "Polygon" for a in annotations)
    for value in (1, 2):
        area = shapely.union_all([a.polygon for a in annotations if a.value == value])
        y, x = np.mgrid[0:150, 0:210] + 0.5
        np.testing.assert_array_equal(shapely.contains_xy(area, x, y), mask == value)


def test_regions_of_a_large_mask_are_right_to_a_pixel(
    tmp_path: Path, slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = blobs() > 0
    label = open_label(write_levels(tmp_path / "m.tif", [mask.astype(np.uint8)]), slide, LabelMap())
    monkeypatch.setattr("samplers.labels.mask._REGION_SIDE", 30)
    area = shapely.union_all([a.polygon for a in label.annotations()])
    y, x = np.nonzero(mask)
    assert shapely.contains_xy(area.buffer(1e-6), x + 0.5, y + 0.5).all()
    assert area.within(shapely.union_all(shapely.box(x, y, x + 1, y + 1)).buffer(12))


def test_a_closed_mask_is_not_read(tmp_path: Path, slide: Slide) -> None:
    label = open_label(write_levels(tmp_path / "m.tif", [blobs()]), slide, LabelMap())
    assert label.read_at(0, 0, 9, 9, 1.0).shape == (9, 9)
    label.close()
    with pytest.raises(ValueError, match="closed"):
        label.read_at(0, 0, 9, 9, 1.0)


@pytest.mark.parametrize("name", ["tumor_064", "tumor_110", "tumor_107", "patient_004_node_4"])
def test_real_annotations_at_true_scale(shared_data: Path, name: str) -> None:
    slide: Any = SimpleNamespace(width=220_000, height=220_000, origin=(0, 0))
    label = open_label(shared_data / "real" / f"{name}.xml", slide, LabelMap())
    largest = max((a for a in label.annotations() if a.value), key=lambda a: a.polygon.area)
    point = largest.polygon.representative_point()
    x, y = int(point.x) - 1024, int(point.y) - 1024
    whole = label.read_at(x, y, 2048, 2048, 1.0)
    assert whole.any()
    for left, top in np.random.default_rng(0).integers(0, 1024, (20, 2)):
        window = whole[top : top + 1024, left : left + 1024]
        np.testing.assert_array_equal(label.read_at(x + int(left), y + int(top), 1024, 1024, 1.0), window)
    for exclusion in (a for a in label.annotations() if a.value == 0):
        point = exclusion.polygon.representative_point()
        assert label.read_at(int(point.x), int(point.y), 1, 1, 1.0)[0, 0] == 0


@pytest.mark.slow
def test_real_annotations_are_quick(shared_data: Path) -> None:
    slide: Any = SimpleNamespace(width=220_000, height=220_000, origin=(0, 0))
    start = time.perf_counter()
    label = open_label(shared_data / "real" / "tumor_064.xml", slide, LabelMap())
    assert time.perf_counter() - start < 2
    seconds = []
    points = np.concatenate([shapely.get_coordinates(a.polygon) for a in label.annotations()])
    for x, y in np.random.default_rng(0).choice(points, 200):
        start = time.perf_counter()
        label.read_at(int(x) - 512, int(y) - 512, 1024, 1024, 1.0)
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.005
