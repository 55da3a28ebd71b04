"""Which values of a mask are classes, and from which levels they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import pyvips
import tifffile

from samplers.labels import mask
from samplers.labels.label import IGNORED, LabelMap, MaskLabel, open_label
from samplers.labels.mask_levels import checked_levels
from samplers.pairs.checks import check_pair
from samplers.slides.errors import ReadError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import texture, write_levels

SIZE = (512, 384)  # width, height


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_levels(tmp_path_factory.mktemp("slide") / "s.tif", [texture(*SIZE)])


def painted(*values: int) -> np.ndarray:
    """A disc of each value, on 0."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    for number, value in enumerate(values):
        cv2.circle(mask, (90 + 110 * number, 190), 47, value, -1)
    return mask


def write_mask(path: Path, array: np.ndarray, shrink: str = "nearest", **options: Any) -> Path:
    tiled = {"tile": True, "tile_width": 64, "tile_height": 64, "pyramid": True}
    image = pyvips.Image.new_from_array(array)
    image.tiffsave(str(path), compression="deflate", region_shrink=shrink, **{**tiled, **options})
    return path


def opened(slide: Path, mask: Path, *items: str, unannotated: str = "background") -> MaskLabel:
    label = open_label(mask, Slide(slide), LabelMap.parse(items, unannotated))
    assert isinstance(label, MaskLabel)
    return label


def reasons(slide: Path, mask: Path, *items: str) -> list[str]:
    return check_pair(slide, mask, LabelMap.parse(items), 128)


@pytest.mark.parametrize(
    ("values", "items", "listed"),
    [
        ((255,), ["1:1"], "255 ("),
        ((1, 2, 3), ["1:1", "2:2"], "3 ("),
        ((2,), ["0:0", "1:1", "255:ignore"], "2 ("),
        ((254,), ["1:1", "2:254"], "254 ("),
    ],
)
def test_values_that_the_map_does_not_name_are_refused(
    tmp_path: Path, slide: Path, values: tuple[int, ...], items: list[str], listed: str
) -> None:
    array = painted(*values)
    path = write_mask(tmp_path / "m.tif", array)
    (reason,) = reasons(slide, path, *items)
    count = np.count_nonzero(array == values[-1])
    assert f"m.tif: values that the label map does not name: {listed}{count:,} pixels)" in reason
    label = opened(slide, path, *items)
    with pytest.raises(ReadError, match=r"m\.tif: values that the label map does not name"):
        label.read_at(0, 0, *SIZE, 1.0)
    with pytest.raises(ReadError, match="does not name"):
        label.thumbnail(64, 48)
    assert not label.read_at(0, 0, 40, 40, 1.0).any()  # where they are not


def test_one_pixel_is_enough(tmp_path: Path, slide: Path) -> None:
    array = painted(1, 2)
    array[7, 11] = 9
    path = write_mask(tmp_path / "m.tif", array)
    assert "9 (1 pixels)" in reasons(slide, path, "1:1", "2:2")[0]
    with pytest.raises(ReadError, match="9 "):
        opened(slide, path, "1:1", "2:2").read_at(0, 0, 20, 20, 1.0)


@pytest.mark.parametrize(("unannotated", "zero"), [("background", 0), ("ignore", IGNORED)])
def test_named_values_and_zero(tmp_path: Path, slide: Path, unannotated: str, zero: int) -> None:
    array = painted(1, 7, 255)
    path = write_mask(tmp_path / "m.tif", array)
    items = ["1:1", "7:254", "255:ignore"]
    assert reasons(slide, path, *items) == []
    expected = np.zeros(256, np.uint8)
    expected[[0, 1, 7, 255]] = zero, 1, 254, IGNORED
    found = opened(slide, path, *items, unannotated=unannotated).read_at(0, 0, *SIZE, 1.0)
    np.testing.assert_array_equal(found, expected[array])


@pytest.mark.parametrize("values", [(255,), (1,), (1, 2), (1, 2, 255), (128, 255), (254,), (17, 34, 51)])
def test_without_numbers_any_value_is_tumour(tmp_path: Path, slide: Path, values: tuple[int, ...]) -> None:
    array = painted(*values)
    path = write_mask(tmp_path / "m.tif", array)
    assert reasons(slide, path) == []
    np.testing.assert_array_equal(opened(slide, path).read_at(0, 0, *SIZE, 1.0), array > 0)


def lossy(array: np.ndarray, quality: int) -> np.ndarray:
    data = pyvips.Image.new_from_array(array).jpegsave_buffer(Q=quality)
    return pyvips.Image.new_from_buffer(data, "").numpy()


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_lossy_values_in_a_lossless_file_are_refused(tmp_path: Path, slide: Path, quality: int) -> None:
    path = write_mask(tmp_path / "m.tif", lossy(painted(255), quality), pyramid=False)
    (reason,) = reasons(slide, path)
    assert "as after lossy compression or interpolation" in reason
    with pytest.raises(ReadError, match="lossy"):
        opened(slide, path).read_at(30, 130, 120, 120, 1.0)


def test_soft_outlines_are_refused(tmp_path: Path, slide: Path) -> None:
    path = write_mask(tmp_path / "m.tif", cv2.GaussianBlur(painted(255), (0, 0), 2), pyramid=False)
    assert "interpolation" in reasons(slide, path)[0]


def test_one_bit_is_1_or_255(tmp_path: Path, slide: Path) -> None:
    array = painted(255)
    path = write_mask(tmp_path / "m.tif", array, pyramid=False, bitdepth=1, predictor="none")
    for items, value in (([], 1), (["1:2"], 2), (["255:3"], 3), (["1:2", "255:ignore"], 2)):
        assert reasons(slide, path, *items) == []
        found = opened(slide, path, *items).read_at(0, 0, *SIZE, 1.0)
        np.testing.assert_array_equal(found, (array > 0) * value)
    assert "1 (" in reasons(slide, path, "2:1")[0]


def test_no_data_is_no_tumour(tmp_path: Path, slide: Path) -> None:
    array = painted(1, 255)
    nodata = [(42113, "s", 0, "255", True)]
    tifffile.imwrite(tmp_path / "m.tif", array, photometric="minisblack", metadata=None, extratags=nodata)
    assert '255 is "no data" by the file' in reasons(slide, tmp_path / "m.tif")[0]
    with pytest.raises(ReadError, match="no data"):
        opened(slide, tmp_path / "m.tif").read_at(0, 0, *SIZE, 1.0)
    assert reasons(slide, tmp_path / "m.tif", "1:1", "255:ignore") == []


def test_colours_are_found_by_the_check_wherever_they_are(tmp_path: Path, slide: Path) -> None:
    array = np.dstack([painted()] * 3)
    array[201, 333] = (255, 0, 0)
    path = write_mask(tmp_path / "m.tif", array, pyramid=False)
    assert "bands differ" in reasons(slide, path)[0]


# --- levels


@pytest.mark.parametrize("shrink", ["nearest", "mode", "max", "min"])
def test_levels_with_values_of_level_0_are_used(tmp_path: Path, slide: Path, shrink: str) -> None:
    path = write_mask(tmp_path / "m.tif", painted(1, 2, 255), shrink)
    with Slide(path, kind="label") as mask:
        assert len(mask.level_sizes) > 3
        assert checked_levels(mask).exact == tuple(range(len(mask.level_sizes)))
    label = opened(slide, path, "1:1", "2:2", "255:3")
    assert label.check() == []
    assert label.left_out == []


@pytest.mark.parametrize("values", [(2,), (255,), (4, 2), (100,)])
@pytest.mark.parametrize("kind", ["mean", "cubic", "linear"])
def test_interpolated_levels_are_not_used(
    tmp_path: Path, slide: Path, kind: str, values: tuple[int, ...]
) -> None:
    array = painted(*values)
    path = tmp_path / "m.tif"
    if kind == "mean":
        write_mask(path, array, kind)
    else:
        method = {"cubic": cv2.INTER_CUBIC, "linear": cv2.INTER_AREA}[kind]
        write_levels(
            path, [array, *(cv2.resize(array, (SIZE[0] // f, SIZE[1] // f), interpolation=method) for f in (2, 4))]
        )  # fmt: skip
    items = [f"{value}:{number}" for number, value in enumerate(values, 1)]
    # With every value named nothing would be noticed.
    named = [*items, *(f"{v}:{9}" for v in range(1, 256) if v not in values)]
    table = np.zeros(256, np.uint8)
    table[list(values)] = range(1, len(values) + 1)
    for label_items in (items, named):
        label = opened(slide, path, *label_items)
        assert label.check() == []
        assert "levels with values that level 0 does not have there" in label.left_out[0]
        found = label.read_at(0, 0, SIZE[0] // 4, SIZE[1] // 4, 4.0)
        np.testing.assert_array_equal(found, table[array[2::4, 2::4]])
        assert set(np.unique(label.thumbnail(64, 48))) <= {0, *range(1, len(values) + 1)}
        assert {annotation.value for annotation in label.annotations()} == set(range(1, len(values) + 1))


def test_only_the_level_that_is_interpolated_is_left_out(tmp_path: Path, slide: Path) -> None:
    array = painted(2)
    soft = cv2.resize(array, (SIZE[0] // 4, SIZE[1] // 4), interpolation=cv2.INTER_AREA)
    path = write_levels(tmp_path / "m.tif", [array, array[::2, ::2], soft, array[::8, ::8]])
    with Slide(path, kind="label") as mask:
        assert checked_levels(mask).exact == (0, 1, 3)
    found = opened(slide, path).read_at(0, 0, 128, 96, 4.0)
    np.testing.assert_array_equal(found, array[::2, ::2][1::2, 1::2] > 0)


def test_a_changed_file_is_looked_at_again(tmp_path: Path) -> None:
    for kind, exact in (("nearest", True), ("mean", False)):
        path = write_mask(tmp_path / "m.tif", painted(100, 200), kind)
        with path.open("ab") as file:
            file.truncate(50_000)  # the same size
        with Slide(path, kind="label") as mask:
            assert (1 in checked_levels(mask).exact) == exact


@pytest.mark.parametrize("kind", ["mode", "mean"])
def test_of_a_large_mask_only_parts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    side = 8192
    array = np.zeros((side, side), np.uint8)
    cv2.circle(array, (3000, 5000), 1500, 2, -1)
    cv2.circle(array, (7000, 1000), 100, 9, -1)
    path = write_mask(tmp_path / "m.tif", array, kind, tile_width=512, tile_height=512)
    slide: Any = Slide(path, kind="label")
    label = open_label(path, slide, LabelMap.parse(["2:1"]))
    read = []
    fetch = Slide.read_level

    def count(self: Slide, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        read.append(width * height)
        return fetch(self, x, y, width, height, level)

    monkeypatch.setattr(Slide, "read_level", count)
    monkeypatch.setattr("samplers.labels.mask._MAX_COUNTED_PIXELS", 4 << 20)
    assert isinstance(label, MaskLabel)
    (reason,) = label.check()
    assert "9 (" in reason
    assert sum(read) < side * side / 2


def test_a_level_that_is_damaged_is_an_error(tmp_path: Path, slide: Path) -> None:
    path = write_mask(tmp_path / "m.tif", painted(1))
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[20]
    path.write_bytes(content[:offset] + b"\xff" * 40 + content[offset + 40 :])
    assert "m.tif: level 0" in reasons(slide, path, "1:1")[0]


def test_a_mask_without_any_tile_is_refused(tmp_path: Path, slide: Path) -> None:
    path = write_levels(tmp_path / "m.tif", [painted()])
    with tifffile.TiffFile(path) as tiff:
        tags = [tiff.pages[0].tags[name] for name in ("TileOffsets", "TileByteCounts")]
        places = [(tag.valueoffset, tag.valuebytecount) for tag in tags]
    with path.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(bytes(size))
    assert "has no pixels" in reasons(slide, path)[0]


def test_what_a_mask_without_small_levels_shows_is_kept(
    tmp_path: Path, slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(mask, "_MAX_MASK_PIXELS", 1000)
    read = Mock(side_effect=MaskLabel._thumbnail, autospec=True)
    monkeypatch.setattr(MaskLabel, "_thumbnail", lambda *arguments: read(*arguments))
    path = write_levels(tmp_path / "m.tif", [painted(1, 2)])

    def shown(*items: str, size: tuple[int, int] = (64, 48)) -> bytes:
        return opened(slide, path, *items).thumbnail(*size).tobytes()

    first, other = shown("1:1", "2:2"), shown("1:2", "2:1")
    assert first != other
    assert (shown("1:1", "2:2"), shown("1:2", "2:1"), read.call_count) == (first, other, 2)
    shown("1:1", "2:2", size=(32, 24))
    assert read.call_count == 3
    write_levels(path, [painted(2, 1)])
    assert shown("1:1", "2:2") == other
    assert read.call_count == 4


def test_levels_that_are_too_small_to_tell_are_no_averages(tmp_path: Path, slide: Path) -> None:
    array = painted(1)
    levels = [array, *(np.ascontiguousarray(array[:: 2**n, :: 2**n]) for n in range(1, 10))]
    label = opened(slide, write_levels(tmp_path / "m.tif", levels), "1:1")
    assert label.check() == []
    assert label.left_out == []
    assert 9 not in label._exact()
