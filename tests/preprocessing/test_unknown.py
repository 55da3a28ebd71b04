"""What is not known: ignored regions in masks and shares, slides without a label or without tissue, unpaired names."""

from __future__ import annotations

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from CAMELYON17_PREPROCESSING import cut, schedule, store
from CAMELYON17_PREPROCESSING.cut import draw as real_draw
from CAMELYON17_PREPROCESSING.preprocess import main, parse_options
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from samplers.labels.label import LabelMap, open_label
from samplers.pairs.pairing import SlidePair
from samplers.slides.slide import Slide
from tests.helpers.lesion_slides import HEIGHT, WIDTH, asap_xml, make_slide
from tests.helpers.preprocessing import table
from tests.helpers.tiny_slides import write_levels
from utils.failures import write_failures_to

TUMOUR, BLURRED = (300, 200, 420, 330), (420, 200, 640, 460)  # left, top, right, bottom
IGNORE = ["--label_map", "Tumor:1", "blurred:ignore"]


def run(root: Path, *words: str, out: str = "out") -> int:
    """Cut patches of 64 pixels."""
    folders = [
        "--train_tumor_wsi_path",
        str(root / "slides"),
        "--save_positive_path",
        str(root / out / "positive"),
    ]
    labels = ["--train_tumor_mask_path", str(root / "xml")] if (root / "xml").is_dir() else []
    return main([*folders, *labels, "--patch_size", "64", "--num_threads", "1", *words])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A slide with a tumour, and beside it a region that is blurred."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "xml").mkdir()
    make_slide(tmp_path / "slides", "case_a", lesions=(TUMOUR,), label=None)
    (tmp_path / "xml" / "case_a.xml").write_text(two_groups())
    return tmp_path


def two_groups() -> str:
    inner = [asap_xml((box,), group) for box, group in ((TUMOUR, "Tumor"), (BLURRED, "blurred"))]
    start, end = "<ASAP_Annotations><Annotations>", "</Annotations></ASAP_Annotations>"
    return start + "".join(text[len(start) : -len(end)] for text in inner) + end


def expected(root: Path, row: dict[str, str], *words: str) -> np.ndarray:
    with Slide(root / "slides" / "case_a.tif") as slide:
        label = open_label(
            root / "xml" / "case_a.xml", slide, LabelMap.parse(["Tumor:1", "blurred:ignore"], *words)
        )
        return label.read_at(int(row["x"]), int(row["y"]), 64, 64, 1.0)


@pytest.mark.parametrize("unannotated", ["background", "ignore"])
def test_masks_and_shares_know_what_is_not_known(unannotated, root, capsys):
    assert run(root, *IGNORE, "--save_neg", "--unannotated", unannotated) == 0
    assert "train with --label_map 1:1 255:ignore" in capsys.readouterr().out
    partly = 0
    for kind in ("positive", "negative"):
        folder = root / "out" / kind
        for row in table(folder):
            classes = expected(root, row, unannotated)
            mask = cv2.imread(str(next(folder.rglob(f"mask_{row['patch']}.png"))), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(mask, classes)
            known, tumour = classes != 255, classes == 1
            assert known.mean() >= 0.5
            assert float(row["known_fraction"]) == pytest.approx(known.mean(), abs=1e-6)
            assert float(row["tumor_fraction"]) == pytest.approx(tumour.sum() / known.sum(), abs=1e-6)
            assert tumour.any() == (kind == "positive")
            partly += not known.all()
    assert partly > 1
    assert bool(table(root / "out" / "negative")) == (unannotated == "background")


def test_a_patch_of_which_too_little_is_known_is_not_written(root, capsys):
    kept = {}
    for least in ("0.01", "0.5", "1"):
        assert run(root, *IGNORE, "--save_neg", "--min_known", least, out=least) == 0
        found = [row for kind in ("positive", "negative") for row in table(root / least / kind)]
        kept[least] = {row["patch"] for row in found}
        assert min(float(row["known_fraction"]) for row in found) >= float(least)
    assert kept["1"] < kept["0.5"] < kept["0.01"]
    assert "discarded, too little of it is known: " in capsys.readouterr().out


def test_masks_of_0_and_255_are_as_before(root):
    assert run(root, "--label_map", "Tumor:1", "blurred:0", "--save_neg") == 0
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (root / "out").rglob("mask_*.png")]
    assert {value for mask in masks for value in np.unique(mask)} == {0, 255}
    assert {row["known_fraction"] for row in table(root / "out" / "positive")} == {"1.0"}


def test_masks_of_several_classes_hold_them(root):
    assert run(root, "--label_map", "Tumor:1", "blurred:2") == 0
    masks = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in (root / "out" / "positive").rglob("mask_*.png")
    ]
    assert {value for mask in masks for value in np.unique(mask)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unannotated", "ignore"], "--unannotated was background, is ignore"),
        (["--label_map", "Tumor:1", "blurred:0"], "--label_map was ['Tumor:1', 'blurred:ignore'], is"),
        (["--min_known", "0.9"], "--min_known was 0.5, is 0.9"),
    ],
)
def test_a_folder_does_not_mix_them(words, said, root, capsys):
    assert run(root, *IGNORE) == 0
    assert run(root, *IGNORE, *words) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_goes_on(root, capsys):
    assert run(root, "--label_map", "Tumor:1", "blurred:0") == 0
    note = root / "out" / "positive" / "preprocessing.json"
    lines = note.read_text().splitlines(keepends=True)
    note.write_text("".join(line for line in lines if "unannotated" not in line and "known" not in line))
    assert run(root, "--label_map", "Tumor:1", "blurred:0") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_of_a_slide_of_camelyon16_that_is_annotated_in_part_only_what_is_annotated_is_known(tmp_path, capsys):
    root = tmp_path / "16"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name in ("tumor_009", "tumor_010"):  # of the second not all lesions are annotated
        make_slide(root / "images", name, lesions=(TUMOUR,), label=None)
        (root / "annotations" / f"{name}.xml").write_text(asap_xml((TUMOUR,)))

    def cut_all(out: str, *words: str) -> dict[str, dict[str, list[float]]]:
        """The known shares of the patches by kind and slide."""
        words = ("--root", str(root), "--save_positive_path", str(tmp_path / out / "positive"), *words)
        assert main([*words, "--patch_size", "64", "--save_neg", "--num_threads", "1"]) == 0
        found: dict[str, dict[str, list[float]]] = {}
        for kind in ("positive", "negative"):
            for row in table(tmp_path / out / kind):
                found.setdefault(kind, {}).setdefault(row["slide"], []).append(float(row["known_fraction"]))
        return found

    found = cut_all("plain")
    assert "1 slides are annotated in part" in capsys.readouterr().err
    assert set(found["negative"]) == {"tumor_009"}
    assert set(found["positive"]["tumor_010"]) == {1.0}
    assert len(found["positive"]["tumor_010"]) < len(found["positive"]["tumor_009"])
    some = cut_all("some", "--label_map", "Tumor:1", "other:ignore")["positive"]["tumor_010"]
    assert len(found["positive"]["tumor_010"]) < len(some)
    assert 0.5 <= min(some) < 1
    everything = cut_all("all", "--all_annotations")
    assert set(everything["negative"]) == {"tumor_009", "tumor_010"}


def test_slides_and_labels_that_do_not_pair_end_with_2_and_are_named(root, capsys):
    for name in ("case_b", "case_c", unicodedata.normalize("NFC", "Präparat")):
        shutil.copy(root / "slides" / "case_a.tif", root / "slides" / f"{name}.tif")
    xml = root / "xml" / "case_a.xml"
    for name in (unicodedata.normalize("NFD", "Präparat"), "case_b.svs"):
        shutil.copy(xml, root / "xml" / f"{name}.xml")
    (root / "xml" / "case_c lesions.xml").write_text(xml.read_text())
    for words in ([], ["--unlabelled", "normal"]):
        assert run(root, *IGNORE, *words) == 2
        said = capsys.readouterr().err
        assert "1 labels without a slide: " in said
        assert "case_c lesions.xml; 1 slides without a label: " in said
        assert "case_c.tif" in said
    assert not list((root / "out").rglob("*.png"))
    (root / "xml" / "case_c lesions.xml").unlink()
    assert run(root, *IGNORE) == 2
    assert "1 slides without a label: " in capsys.readouterr().err
    assert run(root, *IGNORE, "--unlabelled", "skip") == 0
    assert "left out, 1 slides without a label: " in capsys.readouterr().err
    rows = table(root / "out" / "positive")
    assert {row["slide"] for row in rows} == {"case_a", "case_b", unicodedata.normalize("NFC", "Präparat")}


def test_slides_alone_are_not_tumour_free(root, capsys):
    shutil.rmtree(root / "xml")
    assert run(root, "--save_neg") == 2
    assert "1 slides without a label" in capsys.readouterr().err
    assert run(root, "--save_neg", "--unlabelled", "normal") == 0
    assert table(root / "out" / "negative")


def test_a_slide_without_tissue_is_named_and_so_is_a_link_to_nothing(root, capsys):
    write_levels(root / "slides" / "normal_pale.tif", [np.full((HEIGHT, WIDTH, 3), 236, np.uint8)], 0.5)
    (root / "slides" / "normal_gone.tif").symlink_to("nowhere.tif")
    (root / "slides" / "case_x.svs").touch()
    assert run(root, *IGNORE, "--save_neg") == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: normal_pale: " in said
    assert "no tissue was found on it" in said
    assert "bad slide, left out: normal_gone: " in said
    assert "nowhere.tif, which is not there" in said
    assert "1 other files are left out (1 .svs; --format is tif): case_x.svs" in said
    assert {row["slide"] for row in table(root / "out" / "positive")} == {"case_a"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min_tissue", "0.7"], "--min_tissue goes with --save_neg"),
        (["--min_known", "0.7"], "--min_known goes with"),
        (["--label_map", "Tumor"], "--label_map: label map: 'Tumor' is not GROUP:CLASS"),
        (["--all_annotations"], "--all_annotations goes with --root"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--train_tumor_wsi_path", str(tmp_path), *words])
    assert said in capsys.readouterr().err


def test_shares_are_of_known_pixels():
    classes = np.array([[0, 1, 255, 255], [2, 0, 255, 0]], np.uint8)
    assert cut.shares(classes) == (2 / 5, 5 / 8)
    assert cut.shares(np.full((2, 2), 255, np.uint8)) == (0, 0)


class UnpicklableError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("of the test")


def broken(source: SourceSlide, *_: object) -> None:
    """Stand in for a step of a worker."""
    raise UnpicklableError(1, 2) if "case_b" in source.name else MemoryError("of the test")


def test_an_error_that_nobody_expected_is_that_of_its_slide(root, monkeypatch, capsys):
    shutil.copy(root / "slides" / "case_a.tif", root / "slides" / "case_b.tif")
    shutil.copy(root / "xml" / "case_a.xml", root / "xml" / "case_b.xml")
    settings = PatchSettings(patch_size=64, stride=64, label_map=("Tumor:1", "blurred:0"))
    sources = [
        SourceSlide(SlidePair(path, root / "xml" / f"{path.stem}.xml")) for path in root.glob("slides/*.tif")
    ]
    folders = Folders(root / "p", root / "p")
    store.prepare(folders, settings)
    write_failures_to(root / "p")
    monkeypatch.setattr(schedule, "draw", broken)
    settings = replace(settings, save_png=True)
    with pytest.raises(MemoryError):
        schedule.process(sources, settings, folders, 1, lambda *_: None)
    outcome = schedule.process(
        [s for s in sources if s.name == "case_b"], settings, folders, 1, lambda *_: None
    )
    assert outcome.bad == {"case_b": "failed: UnpicklableError: of the test"}
    assert not list((root / "p").rglob("*case_b*"))
    kept = (root / "p" / "failures.log").read_text()
    assert "draw of " in kept
    assert "UnpicklableError: of the test" in kept
    monkeypatch.setattr(schedule, "draw", real_draw)
    outcome = schedule.process(sources, settings, folders, 1, lambda *_: None)
    assert (outcome.bad, outcome.patches["positive"] > 4) == ({}, True)
