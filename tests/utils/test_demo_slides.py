from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from evaluation.lesions import longest_diameter, node_label
from evaluation.staging import SPELLING, patient_stage, read_stages
from samplers.labels.label import LabelMap, open_label
from samplers.slides.slide import Slide
from utils.demo.camelyon17 import LONGEST_UM, NODES, make_camelyon17_demo, make_patients_demo
from utils.demo.slides import SPACING, DemoError, make_demo
from utils.demo.tissue import diameter, make_layout
from utils.demo_slides import main


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels_of(path: Path) -> np.ndarray:
    with Slide(path) as slide:
        return slide.read(0, 0, slide.width, slide.height)


def test_layout_and_pyramid(demo: Path) -> None:
    names = {str(path.relative_to(demo)) for path in demo.rglob("*") if path.is_file()}
    numbers = ("001", "002", "003")
    assert names == {f"slides/tumor_{n}.tif" for n in numbers} | {
        f"masks/tumor_{n}_mask.tif" for n in numbers
    } | {f"xml/tumor_{n}.xml" for n in numbers}
    with tifffile.TiffFile(demo / "slides/tumor_001.tif") as tiff:
        assert [(page.shape[0], page.is_tiled, page.compression.name) for page in tiff.pages] == [
            (side, True, "JPEG") for side in (1536, 768, 384)
        ]


def test_spacing(demo: Path) -> None:
    for path in (demo / "slides/tumor_001.tif", demo / "masks/tumor_001_mask.tif"):
        with Slide(path) as slide:
            assert slide.spacing_known
            assert slide.spacing == pytest.approx(0.25, abs=1e-6)
        assert float(openslide.OpenSlide(path).properties["openslide.mpp-x"]) == pytest.approx(0.25, abs=1e-6)


def test_mask_and_xml_are_the_same_area(demo: Path) -> None:
    for number in (1, 2, 3):
        mask = tifffile.imread(demo / f"masks/tumor_00{number}_mask.tif")
        with tifffile.TiffFile(demo / f"masks/tumor_00{number}_mask.tif") as tiff:
            assert [set(np.unique(page.asarray())) for page in tiff.pages] == [{0, 255}] * 3
        with Slide(demo / f"slides/tumor_00{number}.tif") as slide:
            label = open_label(demo / f"xml/tumor_00{number}.xml", slide, LabelMap())
            np.testing.assert_array_equal(label.read_at(0, 0, 1536, 1536, 1.0), mask // 255)


def test_lesions_have_exclusions_and_both_groups_are_used(demo: Path) -> None:
    groups = [(demo / f"xml/tumor_00{n}.xml").read_text() for n in (1, 2)]
    assert 'PartOfGroup="_0"' in groups[0]
    assert 'PartOfGroup="Tumor"' in groups[1]
    mask = tifffile.imread(demo / "masks/tumor_001_mask.tif")
    _, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[-2:]
    assert (hierarchy[0, :, 3] >= 0).sum() == 1  # one hole


def test_pixels_look_like_stained_tissue_on_glass(demo: Path) -> None:
    pixels = pixels_of(demo / "slides/tumor_001.tif")
    tumour = tifffile.imread(demo / "masks/tumor_001_mask.tif") > 0
    assert pixels[:16, :16].mean() == pytest.approx(243, abs=1)
    saturated = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1] > 20
    assert 0.4 < saturated.mean() < 0.8
    red, normal_red = pixels[..., 0][tumour].mean(), pixels[..., 0][saturated & ~tumour].mean()
    assert 20 < normal_red - red < 90  # darker, as the nuclei are


def test_same_seed_same_bytes_and_nothing_is_made_twice(tmp_path: Path) -> None:
    roots = [
        make_demo(tmp_path / name, 1, 1, 512, seed, n)
        for name, seed, n in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1))
    ]
    first, again, other = (hashes(root) for root in roots)
    assert first == again
    slide = "training/slides/tumor_001.tif"
    assert first[slide] != other[slide]
    assert first[slide] != first["validation/slides/test_001.tif"]
    before = {path: path.stat().st_mtime_ns for path in roots[0].rglob("*_001*")}
    make_demo(roots[0], 1, 1, 512)
    assert len(before) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


@pytest.mark.parametrize("moment", ["*/xml/*.partial", "*/slides/*.tif"])
def test_killed_and_run_again_gives_the_same_files(tmp_path: Path, moment: str) -> None:
    whole, root = make_demo(tmp_path / "whole", 2, 0, 512), tmp_path / "killed"
    child = multiprocessing.get_context("spawn").Process(target=make_demo, args=(root, 2, 0, 512))
    child.start()
    while child.is_alive() and not any(root.glob(moment)):
        time.sleep(0.0005)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    make_demo(root, 2, 0, 512)
    assert hashes(root) == hashes(whole)


def test_slides_of_an_earlier_version_are_made_again(tmp_path: Path) -> None:
    root = make_demo(tmp_path / "demo", 1, 0, 512)
    whole = hashes(root)
    (root / "demo.json").write_text((root / "demo.json").read_text().replace('"version": 2', '"version": 1'))
    (root / "training/slides/tumor_001.tif").write_bytes(b"another picture")
    make_demo(root, 1, 0, 512)
    assert hashes(root) == whole


def test_a_slide_without_its_name_is_made_again(tmp_path: Path) -> None:
    root = make_demo(tmp_path / "demo", 1, 0, 512)
    whole = hashes(root)
    slide = root / "training/slides/tumor_001.tif"
    slide.replace(slide.with_name(f".{slide.name}.partial"))  # as if killed just before the renaming
    make_demo(root, 1, 0, 512)
    assert hashes(root) == whole


def test_camelyon17_layout(tmp_path: Path) -> None:
    root = make_camelyon17_demo(tmp_path / "demo", patients=1, nodes=2, size=512) / "training"
    slides = sorted(str(path.relative_to(root)) for path in root.glob("center_*/*.tif"))
    assert slides == [f"center_{p // 20}/patient_{p:03d}_node_{n}.tif" for p in (0, 20) for n in (0, 1)]
    assert sorted(path.stem for path in root.glob("lesion_annotations/*.xml")) == [
        "patient_000_node_0",
        "patient_020_node_0",
    ]
    text = (root / "lesion_annotations/patient_000_node_0.xml").read_text()
    assert 'PartOfGroup="metastases"' in text
    assert 'PartOfGroup="normal"' in text


def test_centers_stain_differently(tmp_path: Path) -> None:
    root = make_camelyon17_demo(tmp_path / "demo", patients=1, nodes=1, size=512) / "training"
    greens = []  # of cytoplasm: eosin takes green away
    for path in sorted(root.glob("center_*/*.tif")):
        red, green, _ = pixels_of(path).reshape(-1, 3).T
        greens.append(np.median(green[(red > 190) & (green < 225)]))
    assert greens[0] - greens[1] > 15


def test_patients_have_the_stages_that_their_lesions_give_them(tmp_path: Path) -> None:
    root = make_patients_demo(tmp_path / "demo", ("pN0(i+)", "pN0"), size=1024, processes=2)
    stages, nodes = read_stages(root / "stage_labels.csv")
    assert stages == {"patient_000": "pn0(i+)", "patient_001": "pn0"}
    found = {path.stem: 0.0 for path in root.glob("training/center_0/*.tif")}
    assert len(found) == 10
    for path in root.glob("training/lesion_annotations/*.xml"):
        with Slide(root / f"training/center_0/{path.stem}.tif") as slide:
            label = open_label(path, slide, LabelMap()).read_at(0, 0, 1024, 1024, 1.0)
        found[path.stem] = longest_diameter(label == 1) * SPACING / 1000
    assert {name: node_label(millimetres) for name, millimetres in found.items()} == nodes
    with pytest.raises(DemoError, match="too small for the lesions of pN1mi"):
        make_patients_demo(tmp_path / "small", ("pN1mi",), size=1024)


@pytest.mark.parametrize("stage", NODES)
def test_nodes_of_each_stage_are_those_of_the_challenge(stage: str) -> None:
    assert SPELLING[patient_stage(NODES[stage])] == stage


@pytest.mark.parametrize("label", LONGEST_UM)
@pytest.mark.parametrize("seed", range(5))
def test_the_largest_lesion_is_as_long_as_asked_for(label: str, seed: int) -> None:
    low, high = (micrometres / SPACING for micrometres in LONGEST_UM[label])
    layout = make_layout(np.random.default_rng(seed), 3 * 4096, 3, (low, high))
    lengths = [diameter(lesion) for lesion in layout.lesions]
    assert low <= lengths[0] <= high
    assert max(lengths) == lengths[0]
    assert node_label(lengths[0] * SPACING / 1000) == label


def test_a_lesion_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="no lesion"):
        make_layout(np.random.default_rng(0), 1024, 1, (1500, 1600))


def test_other_contents_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_demo(tmp_path / "demo", 1, 0, 512)
    with pytest.raises(DemoError, match="other demo slides"):
        make_demo(root, 2, 0, 512)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/slide.tif").write_bytes(b"x")
    assert main(["--output", str(tmp_path / "full")]) == 2
    assert "something other than demo slides" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "small"), "--size", "100"]) == 2
    assert "at least 512" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "full/slide.tif/demo")]) == 2
    assert "slide.tif/demo cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--train", "-1"], ["--val", "x"], ["--processes", "0"]])
def test_wrong_numbers_are_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path / "demo"), *words])
    assert ended.value.code == 2
    assert f"argument {words[0]}:" in capsys.readouterr().err


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--output",
        str(tmp_path / "demo"),
        "--layout",
        "camelyon17",
        "--size",
        "512",
        "--processes",
        "1",
    ]
    assert main(words) == 0
    assert str(tmp_path / "demo") in capsys.readouterr().out
    assert len(list((tmp_path / "demo").rglob("*.tif"))) == 8


def test_slides_differ_from_each_other(demo: Path) -> None:
    masks = [tifffile.imread(demo / f"masks/tumor_00{n}_mask.tif") for n in (1, 2, 3)]
    assert all((masks[0] != mask).mean() > 0.02 for mask in masks[1:])
    assert SPACING == 0.25
