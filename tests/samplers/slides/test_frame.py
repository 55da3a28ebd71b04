from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile

from samplers.labels.label import LabelMap, open_label
from samplers.slides.errors import DataError
from samplers.slides.frame import described_frame, description_of, frame_of_file
from samplers.slides.slide import Slide
from tests.helpers.scn_slide import write_scn
from tests.helpers.tiny_slides import texture, write_levels


def write_described(path: Path, pixels: np.ndarray, description: str) -> Path:
    tifffile.imwrite(path, pixels, description=description, metadata=None, compression="zlib")
    return path


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_levels(tmp_path / "slide.tif", [texture(400, 300)], spacing=0.243)


def test_what_is_written_is_read(tmp_path: Path, slide: Path) -> None:
    scn = write_scn(tmp_path / "b.scn", texture(256, 256), (64, 128), (512, 512))
    bare = write_levels(tmp_path / "bare.tif", [texture(400, 300)], spacing=None)
    for path, downsample in ((slide, 0.25 / 0.243), (scn, 2.0), (bare, 1.0)):
        with Slide(path) as opened:
            size = int(opened.height / downsample), int(opened.width / downsample)
            text = description_of(opened, downsample)
        found = described_frame(write_described(tmp_path / "m.tif", np.zeros(size, np.uint8), text))
        assert found is not None
        expected = frame_of_file(path)
        names = ("width", "height", "origin", "spacing", "spacing_known")
        assert found[1] == downsample
        assert [getattr(found[0], n) for n in names] == [getattr(expected, n) for n in names]


def test_other_pictures_say_nothing(tmp_path: Path, slide: Path) -> None:
    assert described_frame(slide) is None
    assert described_frame(tmp_path / "nothing.tif") is None
    (tmp_path / "text.tif").write_text("no TIFF")
    assert described_frame(tmp_path / "text.tif") is None
    zeros = np.zeros((30, 40), np.uint8)
    assert described_frame(write_described(tmp_path / "m.tif", zeros, "Aperio |MPP = 0.25")) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("level_0", [400]), ("level_0", None), ("downsample", 0), ("downsample", "x"), ("downsample", -1), ("bounds", 3),
     ("downsample", float("nan")), ("spacing", "x"), ("level_0", [800, 600]), ("downsample", 1.5)],
)  # fmt: skip
def test_a_wrong_description_is_named(tmp_path: Path, slide: Path, key: str, value: object) -> None:
    with Slide(slide) as opened:
        content = json.loads(description_of(opened, 1.0))
    content["frame_of_slide"][key] = value
    path = write_described(tmp_path / "m.tif", np.zeros((300, 400), np.uint8), json.dumps(content))
    with pytest.raises(DataError, match=r"m\.tif"):
        described_frame(path)


def test_a_prediction_as_a_mask_lies_where_it_was_made(tmp_path: Path, slide: Path) -> None:
    downsample = 7 / 3
    size = (int(300 / downsample), int(400 / downsample))
    pixels = np.zeros(size, np.uint8)
    pixels[50:90, 100:150] = 1
    with Slide(slide) as opened:
        path = write_described(tmp_path / "m.tif", pixels, description_of(opened, downsample))
        with closing(open_label(path, opened, LabelMap())) as label:
            rows, columns = (np.arange(n) + 0.5 for n in (300, 400))
            places = [
                np.minimum((centres / downsample).astype(int), n - 1)
                for centres, n in zip((rows, columns), size)
            ]
            np.testing.assert_array_equal(label.read_at(0, 0, 400, 300, 1.0), pixels[np.ix_(*places)])
    other = write_levels(tmp_path / "other.tif", [texture(410, 300)], spacing=0.243)
    with (
        Slide(other) as opened,
        pytest.raises(DataError, match=r"slide of 400 × 300 pixels, but .* is 410 × 300"),
    ):
        open_label(path, opened, LabelMap())


@pytest.mark.parametrize("width", [401, 402, 403, 404])
def test_a_mask_that_is_rounded_down_covers_the_end_of_the_slide(tmp_path: Path, width: int) -> None:
    write_levels(tmp_path / "slide.tif", [texture(width, 300)], spacing=0.25)
    mask = np.ones((75, width // 4), np.uint8)
    write_levels(tmp_path / "mask.tif", [mask], spacing=1.0)
    with (
        Slide(tmp_path / "slide.tif") as slide,
        closing(open_label(tmp_path / "mask.tif", slide, LabelMap())) as label,
    ):
        assert label.read_at(width - 8, 292, 8, 8, 1.0).all()
        assert label.read_at(0, 0, width, 300, 1.0).all()
