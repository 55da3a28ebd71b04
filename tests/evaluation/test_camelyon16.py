from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
from scipy.ndimage import binary_dilation, binary_erosion

from evaluation.camelyon16 import main
from evaluation.tables import read_detections, read_slide_scores
from evaluation.truth import find_truth, has_tumour, tumour_at
from samplers.labels.label import LabelMap
from samplers.pairs.names import slide_key
from samplers.slides.errors import DataError

# Level-0 pixels (x, y) in the first lesion, the second one, the isolated tumour cells, and on no lesion.
FIRST, SECOND, ITC, NOTHING = (800, 800), (2700, 2700), (800, 3400), (2700, 800)


@pytest.fixture(scope="session")
def mask_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4096², levels to 128: two lesions of 1280 and 992 pixels, isolated tumour cells of 96."""
    tumour = np.zeros((4096, 4096), np.uint8)
    tumour[320:1600, 320:1600] = 1
    tumour[2208:3200, 2208:3200] = 1
    tumour[3360:3456, 768:864] = 1
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    write_mask(path, tumour * 255)
    return path


@pytest.fixture
def case(tmp_path: Path, mask_file: Path) -> Path:
    """A slide with tumour and two normal ones."""
    (tmp_path / "truth").mkdir()
    (tmp_path / "found").mkdir()
    shutil.copy(mask_file, tmp_path / "truth/Tumor_001_Mask.tif")
    write_found(tmp_path, "Tumor_001", [(0.9, FIRST), (0.7, FIRST), (0.8, ITC), (0.6, NOTHING)])
    write_found(tmp_path, "Normal_001", [(0.3, NOTHING)])
    write_found(tmp_path, "Normal_002", [])
    return tmp_path


def write_mask(path: Path, pixels: np.ndarray, shrink: str = "nearest") -> None:
    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(
        str(path),
        tile=True,
        tile_width=128,
        tile_height=128,
        pyramid=True,
        region_shrink=shrink,
        compression="lzw",
    )


def write_found(root: Path, name: str, rows: list[tuple[float, tuple[int, int]]]) -> None:
    text = "".join(f"{confidence},{x},{y}\n" for confidence, (x, y) in rows)
    (root / f"found/{name}.csv").write_text(text)


def run(root: Path, *words: str) -> int:
    folders = ["--predictions", str(root / "found"), "--ground_truth", str(root / "truth")]
    return main([*folders, "--bootstrap", "20", *words])


def scores_of(root: Path) -> dict:
    return json.loads((root / "found/scores/camelyon16.json").read_text())


def test_scores_of_a_case(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # {0, 0.3, 0.6, 0.9}[1:], 2 lesions, 3 slides: (2/3, 1/2), (1/3, 1/2), (0, 1/2), (0, 0).
    assert run(case) == 0
    summary = scores_of(case)
    counts = {key: summary[key] for key in ("slides", "lesions", "lesions_found", "itc", "false_positives")}
    assert counts == {"slides": 3, "lesions": 2, "lesions_found": 1, "itc": 1, "false_positives": 2}
    assert summary["froc_official"]["score"] == summary["froc_corrected"]["score"] == 0.5
    assert "FROC score 0.5000 (95 % 0.5000 to 0.5000), official" in capsys.readouterr().out


def test_tables_and_plot(case: Path) -> None:
    run(case)
    with (case / "found/scores/lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["slide"], r["kind"], r["found"], r["confidence"], r["hit_x"]) for r in rows] == [
        ("Tumor_001", "metastasis", "1", "0.9", "800.0"),
        ("Tumor_001", "metastasis", "0", "", ""),
        ("Tumor_001", "itc", "1", "0.8", "800.0"),
    ]
    assert (float(rows[0]["x"]), float(rows[0]["y"])) == (960, 960)
    with (case / "found/scores/froc.csv").open() as file:
        points = [row for row in csv.DictReader(file) if row["mode"] == "official"]
    assert [float(point["false_positives_per_slide"]) for point in points] == [2 / 3, 1 / 3, 0, 0]
    picture = cv2.imread(str(case / "found/scores/froc.png"))
    assert picture.shape == (576, 768, 3)


def test_a_second_run_does_not_take_its_own_tables_for_predictions(case: Path) -> None:
    run(case)
    first = scores_of(case)
    assert run(case) == 0
    assert scores_of(case) == first


def test_slide_auc(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 0.7 is above one of the two normal slides: 1/2.
    (case / "slides.csv").write_text(
        "image,probability\nTumor_001.tif,0.7\nNormal_001.tif,0.2\nNormal_002.tif,0.8\n"
    )
    assert run(case, "--slide_scores", str(case / "slides.csv")) == 0
    assert scores_of(case)["slide_auc"]["auc"] == 0.5
    assert "slide AUC 0.5000" in capsys.readouterr().out


def test_output_of_predict(case: Path) -> None:
    (case / "found").rename(case / "lesions")
    (case / "slides.csv").write_text(
        "slide,probability,node\ntumor_001,0.7,x\nnormal_001,0.2,\nnormal_002,0.1,\n"
    )
    words = ["--predictions", str(case), "--ground_truth", str(case / "truth"), "--output", str(case / "out")]
    assert main([*words, "--bootstrap", "0"]) == 0
    assert json.loads((case / "out/camelyon16.json").read_text())["slide_auc"]["auc"] == 1


def test_slides_are_left_out_by_name(case: Path) -> None:
    assert run(case, "--exclude", "normal_001", "NORMAL_002.tif") == 0
    assert scores_of(case)["slides"] == 1


def test_slides_without_csv_do_not_count_and_are_named(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mask(case / "truth/Test_009_Mask.tif", np.full((4096, 4096), 255, np.uint8))
    assert run(case) == 0
    assert "test_009" in capsys.readouterr().err
    assert scores_of(case)["lesions"] == 2


def test_detections_outside_are_warned_of(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_found(case, "Tumor_001", [(0.9, FIRST), (0.5, (4096, 10)), (0.4, (-1, 10))])
    assert run(case) == 0
    assert "2 of 3 detections are not on the slide" in capsys.readouterr().err
    assert scores_of(case)["false_positives"] == 3


def test_masks_of_label_values_and_of_255_are_the_same(case: Path) -> None:
    mask = case / "truth/Tumor_001_Mask.tif"
    expected = tumour_at(mask, 32, LabelMap())
    pixels = pyvips.Image.new_from_file(str(mask)).numpy()
    write_mask(case / "ones.tif", pixels // 255)
    np.testing.assert_array_equal(tumour_at(case / "ones.tif", 32, LabelMap()), expected)
    assert expected.shape == (128, 128)
    assert expected.sum() == 40**2 + 31**2 + 3**2


def test_the_level_of_the_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    # One pixel in the corner of a cell that a level of nearest pixels has and one of medians has not.
    pixels = np.zeros((4096, 4096), np.uint8)
    pixels[64, 96] = 255
    write_mask(tmp_path / "nearest.tif", pixels)
    write_mask(tmp_path / "mode.tif", pixels, "mode")
    assert np.argwhere(tumour_at(tmp_path / "nearest.tif", 32, LabelMap())).tolist() == [[2, 3]]
    assert not tumour_at(tmp_path / "mode.tif", 32, LabelMap()).any()


def test_averages_in_a_level_are_no_tumour(tmp_path: Path) -> None:
    # As the organisers have it: 255 less the mask is 0 in tumour only. In other masks any value is tumour.
    pixels = np.zeros((4096, 4096), np.uint8)
    pixels[64:112, 96:128] = 255
    write_mask(tmp_path / "mask.tif", pixels, "mean")
    assert np.argwhere(tumour_at(tmp_path / "mask.tif", 32, LabelMap())).tolist() == [[2, 3]]
    some = LabelMap.parse(["255:0", *(f"{value}:1" for value in range(1, 255))])
    assert np.argwhere(tumour_at(tmp_path / "mask.tif", 32, some)).tolist() == [[3, 3]]
    write_mask(tmp_path / "mask.tif", pixels // 255 * 2, "mean")
    assert np.argwhere(tumour_at(tmp_path / "mask.tif", 32, LabelMap())).tolist() == [[2, 3], [3, 3]]


def test_the_mask_is_as_large_as_its_level(tmp_path: Path) -> None:
    # 4127 / 32 is 128.97; libvips drops what is not a whole pixel. Without such a level all of it is covered.
    write_mask(tmp_path / "mask.tif", np.zeros((4127, 4096), np.uint8))
    assert tumour_at(tmp_path / "mask.tif", 32, LabelMap()).shape == (128, 128)
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((4127, 4096), np.uint8))
    assert tumour_at(tmp_path / "mask.png", 32, LabelMap()).shape == (129, 128)


def test_annotations_are_the_masks(demo: Path) -> None:
    slide, mask, xml = (
        demo / "slides/tumor_001.tif",
        demo / "masks/tumor_001_mask.tif",
        demo / "xml/tumor_001.xml",
    )
    of_mask = tumour_at(mask, 32, LabelMap())
    of_xml = tumour_at(xml, 32, LabelMap(), slide)
    assert of_mask.shape == of_xml.shape == (48, 48)
    # The middle of 32 pixels is between two of them: the two may differ on the outline, nowhere else.
    outline = binary_dilation(of_xml) & ~binary_erosion(of_xml)
    assert not ((of_mask != of_xml) & ~outline).any()
    alone = tumour_at(xml, 32, LabelMap())
    rows, columns = alone.any(1).nonzero()[0].max() + 1, alone.any(0).nonzero()[0].max() + 1
    np.testing.assert_array_equal(alone[:rows, :columns], of_xml[:rows, :columns])
    assert of_xml.sum() == alone.sum()


def test_has_tumour(case: Path, demo: Path) -> None:
    assert has_tumour(case / "truth/Tumor_001_Mask.tif", LabelMap())
    write_mask(case / "empty.tif", np.zeros((512, 512), np.uint8))
    assert not has_tumour(case / "empty.tif", LabelMap())
    assert has_tumour(demo / "xml/tumor_001.xml", LabelMap())
    assert not has_tumour(demo / "xml/tumor_001.xml", LabelMap.parse(["Tumor:1", "_0:0", "_2:0"]))


def test_names() -> None:
    assert {
        slide_key(name) for name in ("Tumor_001", "tumor_001_Mask", "mask_tumor_001", "tumor_001_prediction")
    } == {"tumor_001"}


def test_two_files_for_one_slide(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case / "truth/tumor_001.xml").write_text("<ASAP_Annotations/>")
    assert run(case) == 2
    assert "two files for one slide, Tumor_001_Mask.tif and tumor_001.xml" in capsys.readouterr().err


@pytest.mark.parametrize("row", ["0.5,1", "0.5,1,2,3", "a,1,2", "nan,1,2", "0.5,,2", "0.5,inf,2"])
def test_a_wrong_row_is_named(case: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    (case / "found/Normal_001.csv").write_text(f"0.5,1,2\n\n{row}\n")
    assert run(case) == 2
    assert "Normal_001.csv, line 3" in capsys.readouterr().err


def test_detections_with_header_spaces_and_fractions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("confidence,X,Y\r\n 0.5 , 1.5 , 2\r\n")
    assert read_detections(tmp_path / "a.csv") == [(0.5, 1.5, 2)]
    (tmp_path / "a.csv").write_text("")
    assert read_detections(tmp_path / "a.csv") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no slides"), ("a.tif,x\n", "line 1"), ("a,0.5\nA.tif,0.6\n", "twice"), ("a\n", "line 1")],
)
def test_wrong_slide_scores(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_slide_scores(tmp_path / "s.csv")


def test_what_cannot_be_used_ends_with_2(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--predictions", str(case / "found"), "--ground_truth", str(case / "truth")]
    assert main([*words[:2], "--ground_truth", str(case / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert main(["--predictions", str(case / "truth"), *words[2:]]) == 2
    assert "no .csv files" in capsys.readouterr().err
    write_found(case, "Tumor_002", [])
    assert main(words) == 2
    assert "tumor_002" in capsys.readouterr().err
    with pytest.raises(DataError, match="no masks"):
        find_truth(case / "found")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_map", "Tumor"], "'Tumor' is not GROUP:CLASS"),
        (["--output", "found/Normal_001.csv/scores"], "cannot be written"),
    ],
)
def test_wrong_options_end_with_2_and_one_line(
    case: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(case)
    assert run(case, *words) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_seed_is_named(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(case, "--seed", "-1")
    assert "argument --seed: -1 is not between" in capsys.readouterr().err


def test_only_isolated_tumour_cells(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.zeros((4096, 4096), np.uint8)
    pixels[320:420, 320:420] = 255
    write_mask(case / "truth/Tumor_001_Mask.tif", pixels)
    assert run(case) == 2
    assert "no lesion is to be found" in capsys.readouterr().err
