"""Predictions, slides and ground truth that do not have the same pixels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from evaluation import camelyon16, camelyon17, segmentation
from evaluation.truth import tumour_at
from samplers.labels.label import LabelMap
from samplers.slides.errors import DataError
from samplers.slides.frame import description_of
from samplers.slides.slide import Slide
from tests.helpers.lesion_slides import asap_xml
from tests.helpers.scn_slide import write_scn
from tests.helpers.tiny_slides import write_levels

LESION = (1500, 1300, 1740, 1500)  # left, top, right, bottom in level-0 pixels
SIZE = (2000, 1600)


def plain(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def lesion_at(size: tuple[int, int], downsample: float) -> np.ndarray:
    """The pixels whose centres are in LESION: uint8 (h, w)."""
    (x, y) = ((np.arange(int(n / downsample)) + 0.5) * downsample for n in size)
    inside_x, inside_y = (x >= LESION[0]) & (x < LESION[2]), (y >= LESION[1]) & (y < LESION[3])
    return np.outer(inside_y, inside_x).astype(np.uint8)


def write_prediction(path: Path, slide: Path, downsample: float, described: bool = True) -> None:
    path.parent.mkdir(exist_ok=True)
    with Slide(slide) as opened:
        text = description_of(opened, downsample) if described else None
        resolution = (1e4 / opened.spacing / downsample,) * 2
        pixels = lesion_at((opened.width, opened.height), downsample)
    tifffile.imwrite(
        path,
        pixels,
        description=text,
        metadata=None,
        tile=(256, 256),
        compression="zlib",
        resolution=resolution,
        resolutionunit="CENTIMETER",
    )


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A slide of 0.243 µm/px, and outlines; predictions are still to be made."""
    for folder in ("slides", "truth", "out"):
        (tmp_path / folder).mkdir()
    write_levels(tmp_path / "slides/a.tif", [plain(*SIZE)], spacing=0.243, tile=256)
    (tmp_path / "truth/a.xml").write_text(asap_xml([LESION]))
    return tmp_path


def run(root: Path, *words: str, truth: str = "truth") -> int:
    return segmentation.main(
        ["--predictions", str(root / "out"), "--ground_truth", str(root / truth), *words]
    )


def dice(root: Path) -> float:
    return json.loads((root / "out/scores/segmentation.json").read_text())["slides"]["a"]["dice"][1]


@pytest.mark.parametrize("downsample", [1.0, 0.25 / 0.243, 4.0, 7 / 3])
def test_predictions_of_another_spacing(
    case: Path, downsample: float, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = ("--slide_path", str(case / "slides"))
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", downsample)
    for words in ((), slides, ("--tile", "300")):
        assert run(case, *words) == 0
        assert dice(case) > 0.995
    # One of an earlier version needs the slide.
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", downsample, described=False)
    assert run(case) == 2
    assert "a_prediction.tif: does not say the size and the downsample" in capsys.readouterr().err
    (case / "others").mkdir()
    write_levels(case / "others/b.tif", [plain(*SIZE)], spacing=0.243)
    assert run(case, "--slide_path", str(case / "others")) == 2
    assert run(case, *slides) == 0
    assert dice(case) > 0.995


def test_tiles_make_no_difference_at_a_fraction_of_a_pixel(case: Path) -> None:
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", 0.25 / 0.243)
    words = (case / "out/a_prediction.tif", case / "truth/a.xml", None, LabelMap())
    whole = segmentation.count_slide(*words, tile=2048)
    for tile in (100, 331):
        tiled = segmentation.count_slide(*words, tile=tile)
        np.testing.assert_array_equal(tiled.confusion, whole.confusion)
        np.testing.assert_array_equal(tiled.outlines, whole.outlines)
    assert whole.confusion[0, 1] == whole.confusion[1, 0] == 0


@pytest.mark.parametrize("spacings", [(0.243, 0.25), (0.972, 0.25), (0.25, 0.972), (0.972, 0.972)])
def test_masks_of_another_spacing_than_the_prediction(case: Path, spacings: tuple[float, float]) -> None:
    of_mask, of_prediction = spacings
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", of_prediction / 0.243)
    (case / "masks").mkdir()
    write_levels(case / "masks/a_mask.tif", [lesion_at(SIZE, of_mask / 0.243)], of_mask, tile=256)
    assert run(case, truth="masks") == 0
    assert dice(case) > 0.98


def test_another_slide_than_that_of_the_prediction_is_named(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", 2.0)
    write_levels(case / "slides/a.tif", [plain(2004, 1600)], spacing=0.243)
    assert run(case, "--slide_path", str(case / "slides")) == 2
    assert "is of a slide of 2000 × 1600 pixels" in capsys.readouterr().err
    (case / "masks").mkdir()
    write_levels(case / "masks/a.tif", [np.ones((1600, 2100), np.uint8)], spacing=0.243, tile=256)
    assert run(case, truth="masks") == 2


def test_frames_are_looked_at_before_the_first_slide_is_read(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", 1.0)
    write_prediction(case / "out/b_prediction.tif", case / "slides/a.tif", 1.0, described=False)
    (case / "truth/b.xml").write_text(asap_xml([LESION]))
    monkeypatch.setattr("evaluation.segmentation.count_slide", None)
    assert run(case) == 2


def test_boundaries_are_in_the_spacing_of_the_slide(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case / "truth/a.xml").write_text(asap_xml([(1500 + 40, 1300, 1740 + 40, 1500)]))
    write_prediction(case / "out/a_prediction.tif", case / "slides/a.tif", 2.0)
    assert run(case) == 0
    found = json.loads((case / "out/scores/segmentation.json").read_text())["slides"]["a"]
    assert found["boundary_p95_um"] == pytest.approx(40 * 0.243, abs=0.5)
    (case / "masks").mkdir()
    cv2.imwrite(str(case / "masks/a.png"), np.ones((100, 100), np.uint8))
    cv2.imwrite(str(case / "out/a_prediction.png"), np.ones((100, 100), np.uint8))
    (case / "out/a_prediction.tif").unlink()
    assert run(case, truth="masks") == 0
    assert "no spacing is known, distances are of 0.25" in capsys.readouterr().err


@pytest.fixture
def cropped(tmp_path: Path) -> Path:
    """A slide with `openslide.bounds-*`, its lesion as QuPath sees it, and one detection in its middle."""
    corner = (512, 256)
    for folder in ("slides", "truth", "out/lesions"):
        (tmp_path / folder).mkdir(parents=True)
    write_scn(tmp_path / "slides/a.scn", plain(1488, 1344), corner, SIZE)
    left, top, right, bottom = (value - corner[i % 2] for i, value in enumerate(LESION))
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    feature = {
        "type": "Feature",
        "properties": {"classification": {"name": "Tumor"}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    (tmp_path / "truth/a.geojson").write_text(json.dumps(feature))
    (tmp_path / "out/lesions/a.csv").write_text("0.9,1620,1400\n")
    return tmp_path


def test_qupath_on_a_slide_with_bounds(cropped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = ("--slide_path", str(cropped / "slides"))
    write_prediction(cropped / "out/a_prediction.tif", cropped / "slides/a.scn", 2.0)
    for words in ((), slides):
        assert run(cropped, *words) == 0
        assert dice(cropped) == 1
    froc = [
        "--predictions",
        str(cropped / "out"),
        "--ground_truth",
        str(cropped / "truth"),
        "--bootstrap",
        "0",
    ]

    def found() -> list[int]:
        summary = json.loads((cropped / "out/lesions/scores/camelyon16.json").read_text())
        return [summary[key] for key in ("lesions", "lesions_found", "false_positives")]

    grown = LabelMap(), cropped / "truth/a.geojson"
    assert tumour_at(grown[1], 32, grown[0], cropped / "slides/a.scn")[1400 // 32, 1620 // 32]
    (cropped / "truth/a.geojson").write_text(  # large enough for the FROC
        (cropped / "truth/a.geojson").read_text().replace(str(LESION[0] - 512), "20.0")
    )
    for words in ((), slides):
        assert camelyon16.main([*froc, *words]) == 0
        assert found() == [1, 1, 0]
    (cropped / "out/a_prediction.tif").unlink()
    assert camelyon16.main(froc) == 2
    assert "a.geojson: QuPath's positions begin at the slide's openslide.bounds" in capsys.readouterr().err


def test_a_mask_that_may_be_smaller_than_its_slide_needs_the_slide(case: Path) -> None:
    mask = case / "a_mask.tif"
    write_levels(mask, [lesion_at(SIZE, 4)], 0.972, tile=256)
    with pytest.raises(DataError, match=r"0\.972 µm/px, so it may be smaller than its slide"):
        tumour_at(mask, 32, LabelMap())
    expected = tumour_at(case / "truth/a.xml", 32, LabelMap(), case / "slides/a.tif")
    found = tumour_at(mask, 32, LabelMap(), case / "slides/a.tif")
    assert found.shape == (50, 63)
    np.testing.assert_array_equal(found, expected)
    write_prediction(mask, case / "slides/a.tif", 4.0)  # which says so itself
    np.testing.assert_array_equal(tumour_at(mask, 32, LabelMap()), expected)


def test_probability_maps_are_measured_in_the_spacing_of_the_slide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "truth.csv").write_text("patient,stage\npatient_000.zip,pN1\n")
    write_levels(tmp_path / "slide.tif", [plain(800, 800)], spacing=4.0)
    words = [
        "--predictions",
        str(tmp_path),
        "--ground_truth",
        str(tmp_path / "truth.csv"),
        "--bootstrap",
        "0",
    ]
    pixels = np.zeros((800, 800), np.uint8)
    pixels[100:460, 100:460] = 255  # 360 · 4 µm: 2.04 mm from corner to corner
    path = tmp_path / "patient_000_node_0_probability.tif"
    with Slide(tmp_path / "slide.tif") as slide:
        text = description_of(slide, 1.0)
    for spacing, code in ((4.0, 0), (3.9, 0), (None, 2)):  # the resolution of a TIFF is rounded
        resolution = {"resolution": (1e4 / spacing,) * 2, "resolutionunit": "CENTIMETER"} if spacing else {}
        tifffile.imwrite(path, pixels, description=text, metadata=None, **resolution)
        assert camelyon17.main(words) == code
        if spacing:
            assert "patient_000_node_0.tif,macro" in (tmp_path / "scores/submission.csv").read_text()
    assert "does not say its spacing" in capsys.readouterr().err
    tifffile.imwrite(path, pixels[:300], description=text, metadata=None)
    assert camelyon17.main(words) == 2
    assert "has it been cut or resized?" in capsys.readouterr().err
