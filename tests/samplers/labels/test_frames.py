"""Whether labels lie where their program has drawn them, and outlines of no group."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from samplers.labels.label import IGNORED, LabelMap, open_label
from samplers.pairs.checks import check_pair
from samplers.slides.errors import DataError
from samplers.slides.slide import Slide
from tests.helpers.scn_slide import write_scn
from tests.helpers.tiny_slides import texture, write_levels
from tests.samplers.labels.test_annotations import SQUARE, asap
from tests.samplers.labels.test_geojson import feature, polygon, ring

CORNER, SIZE = (384, 128), (1024, 512)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with `openslide.bounds-*`."""
    return write_scn(tmp_path_factory.mktemp("scn") / "a.scn", texture(512, 256), CORNER, SIZE)


def classes_of(slide: Path, label: Path, *items: str, unannotated: str = "background") -> np.ndarray:
    with Slide(slide) as opened:
        label_map = LabelMap.parse(items, unannotated)
        with closing(open_label(label, opened, label_map)) as found:
            return found.read_at(0, 0, opened.width, opened.height, 1.0)


def test_the_origin_of_a_slide(cropped: Path, tmp_path: Path) -> None:
    with Slide(cropped) as slide:
        assert (slide.origin, slide.width, slide.height) == (CORNER, *SIZE)
    with Slide(write_levels(tmp_path / "a.tif", [texture(100, 100)])) as slide:
        assert slide.origin == (0, 0)


def test_geojson_lies_on_the_scanned_part_and_asap_on_the_slide(cropped: Path, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps(feature(polygon(ring(10, 20, 30)))))
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[128 + 20 : 128 + 50, 384 + 10 : 384 + 40] = 1
    np.testing.assert_array_equal(classes_of(cropped, tmp_path / "a.geojson"), expected)
    (tmp_path / "a.xml").write_text(asap(("Polygon", "_0", SQUARE)))
    assert classes_of(cropped, tmp_path / "a.xml")[10:30, 10:30].sum() == 400
    # Level-0 positions of the same lesion are outside of the slide as QuPath sees it.
    (tmp_path / "b.geojson").write_text(json.dumps(feature(polygon(ring(900, 400, 30)))))
    with pytest.raises(DataError, match="outside of the slide"):
        classes_of(cropped, tmp_path / "b.geojson")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_levels(tmp_path_factory.mktemp("slide") / "a.tif", [texture(256, 200)])


def write_groups(tmp_path: Path, *groups: str) -> Path:
    """Squares side by side, each of a group."""
    annotations = [("Polygon", group, [(x + 40 * i, y) for x, y in SQUARE]) for i, group in enumerate(groups)]
    path = tmp_path / "a.xml"
    path.write_text(asap(*annotations))
    return path


@pytest.mark.parametrize("groups", [("None",), ("", "None"), (" ", "")])
def test_outlines_of_no_group_alone_are_refused(slide: Path, tmp_path: Path, groups: tuple[str, ...]) -> None:
    path = write_groups(tmp_path, *groups)
    for unannotated in ("background", "ignore"):
        for items in ((), ("_0:1",)):
            (reason,) = check_pair(slide, path, LabelMap.parse(items, unannotated), 64)
            assert f"a.xml: none of its {len(groups)} outlines belongs to a group" in reason
            assert "--label_map None:1" in reason
    with pytest.raises(DataError, match="belongs to a group"):  # without the check as well
        classes_of(slide, path)


@pytest.mark.parametrize(
    ("item", "value"), [("None:1", 1), ("None:0", 0), ("None:3", 3), ("None:ignore", IGNORED)]
)
def test_a_label_map_that_names_no_group_is_obeyed(
    slide: Path, tmp_path: Path, item: str, value: int
) -> None:
    path = write_groups(tmp_path, "None", "_0")
    classes = classes_of(slide, path, "_0:2", item)
    assert set(np.unique(classes[10:30, 10:30])) == {value}
    assert set(np.unique(classes[10:30, 50:70])) == {2}
    assert check_pair(slide, write_groups(tmp_path, "None"), LabelMap.parse([item]), 64) == []


@pytest.mark.parametrize(("unannotated", "value"), [("background", 0), ("ignore", IGNORED)])
def test_outlines_of_no_group_beside_others_are_not_annotated_and_counted(
    slide: Path, tmp_path: Path, unannotated: str, value: int
) -> None:
    path = write_groups(tmp_path, "None", "Tumor", "")
    classes = classes_of(slide, path, unannotated=unannotated)
    assert set(np.unique(classes[10:30, [*range(10, 30), *range(90, 110)]])) == {value}
    assert classes[20, 60] == 1
    with Slide(slide) as opened:
        label = open_label(path, opened, LabelMap.parse(None, unannotated))
        assert label.left_out == ["a.xml: 2 outlines belong to no group: taken as not annotated"]
    assert check_pair(slide, path, LabelMap.parse(None, unannotated), 64) == []


def test_exclusions_and_outlines_of_no_group_are_no_slide_without_tumour(slide: Path, tmp_path: Path) -> None:
    (reason,) = check_pair(slide, write_groups(tmp_path, "None", "_2"), LabelMap(), 64)
    assert "no annotation that could be used" in reason


def test_outlines_that_are_all_ignored_can_be_used(slide: Path, tmp_path: Path) -> None:
    path = write_groups(tmp_path, "blurred")
    assert check_pair(slide, path, LabelMap.parse(["_0:1", "blurred:ignore"]), 64) == []
    assert LabelMap.parse(["blurred:ignore"]).num_classes == 2
