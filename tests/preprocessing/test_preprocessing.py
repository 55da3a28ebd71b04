"""Slides into patches: what is cut, what is written, and that it can be stopped at any moment."""

from __future__ import annotations

import csv
import hashlib
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from CAMELYON17_PREPROCESSING import cut, store
from CAMELYON17_PREPROCESSING.grid import is_background, places
from CAMELYON17_PREPROCESSING.preprocess import main, parse_options
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from samplers import SamplerConfig, training_loader
from samplers.labels.label import LabelMap, open_label
from samplers.pairs.pairing import SlidePair, find_pairs
from samplers.reader import BadSlideError
from samplers.slides.errors import ReadError
from samplers.slides.slide import Slide
from tests.helpers.launch import ROOT, run_python, start_python, wait_for
from tests.helpers.tiny_slides import overwrite_tile
from utils.demo.slides import make_camelyon17_demo

ARGUMENTS = ["--patch_size", "128", "--save_neg", "--save_png", "--num_threads", "2"]


@pytest.fixture(scope="module")
def demo17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two centres with a patient of two slides each, one of these without annotation."""
    return make_camelyon17_demo(tmp_path_factory.mktemp("demo17"), patients=1, size=1024)


def words(root: Path, out: Path, *more: str) -> list[str]:
    return ["--root", str(root), "--save_positive_path", str(out / "positive"), *ARGUMENTS, *more]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "patches.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(demo17: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    assert main(words(demo17, out)) == 0
    return out


def test_every_patch_and_mask_is_what_is_at_its_place(demo17, whole):
    rows = {kind: table(whole / kind) for kind in ("positive", "negative")}
    assert len(rows["positive"]) >= 10
    assert len(rows["negative"]) > 20
    for kind, found in rows.items():
        for row in found:
            path = next((demo17 / "training").rglob(f"{row['slide']}.tif"))
            label = demo17 / "training" / "lesion_annotations" / f"{row['slide']}.xml"
            with Slide(path) as slide:
                corner = int(row["x"]), int(row["y"])
                image = slide.read(*corner, 128, 128)
                expected = open_label(label if label.exists() else None, slide, LabelMap())
                mask = expected.read_at(*corner, 128, 128, 1.0)
            with Slide(whole / kind / f"{row['patch']}.png") as patch:
                np.testing.assert_array_equal(patch.read(0, 0, 128, 128), image)
                assert patch.spacing == pytest.approx(0.25)
            written = cv2.imread(str(whole / kind / f"mask_{row['patch']}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(written, mask * 255)
            assert float(row["tumor_fraction"]) == pytest.approx(mask.mean(), abs=1e-6)
            assert (mask.mean() >= 0.01) == (kind == "positive")
            assert int(row["center"]) == int(row["patient"]) // 20
            assert row["patch"] == f"tumor_center_{row['center']}_{row['slide']}_{row['x']}_{row['y']}"


@pytest.mark.parametrize("sampler", ["surf", "radboud"])
@pytest.mark.parametrize("img_size", [64, 128])
def test_both_samplers_train_on_whole_patches_and_on_crops(sampler, img_size, whole):
    pairs, _ = find_pairs(whole / "positive", whole / "positive", "png", "png")
    assert len(pairs) == len(table(whole / "positive"))
    resolution = 0.25 if sampler == "radboud" else None
    config = SamplerConfig(sampler, img_size, batch_size=2, resolution=resolution)
    drawn = set()
    with training_loader(pairs, config, 0, 1, processes=0) as loader:
        for batch, _ in zip(loader, range(12)):
            assert batch.images.shape == (2, img_size, img_size, 3)
            for image, label, patch in zip(batch.images, batch.labels, batch.patches):
                drawn.add(patch.slide)
                with Slide(whole / "positive" / f"{patch.slide}.png") as slide:
                    np.testing.assert_array_equal(
                        slide.read(patch.x_l0, patch.y_l0, img_size, img_size), image
                    )
                assert label.any()
    assert len(drawn) > 5


def test_slides_without_annotation_give_negatives_only(demo17, whole):
    lacking = {path.stem for path in demo17.rglob("patient*.tif")} - {
        path.stem for path in demo17.rglob("*.xml")
    }
    assert lacking
    assert not lacking & {row["slide"] for row in table(whole / "positive")}
    assert lacking <= {row["slide"] for row in table(whole / "negative")}


def test_tumour_of_all_positives_is_the_area_of_the_annotations_inside_of_the_grid(demo17, tmp_path):
    out = words(demo17, tmp_path, "--min_tumor", "0")
    assert main(out) == 0
    areas: dict[str, int] = {}
    for row in table(tmp_path / "positive"):
        mask = cv2.imread(str(tmp_path / "positive" / f"mask_{row['patch']}.png"), cv2.IMREAD_UNCHANGED)
        areas[row["slide"]] = areas.get(row["slide"], 0) + np.count_nonzero(mask)
    for xml in demo17.rglob("*.xml"):
        with Slide(next(demo17.rglob(f"{xml.stem}.tif"))) as slide:
            side = slide.width // 128 * 128
            expected = open_label(xml, slide, LabelMap()).read_at(0, 0, side, side, 1.0)
        assert areas[xml.stem] == np.count_nonzero(expected)


def test_a_second_run_does_nothing_and_other_options_are_refused(demo17, whole, capsys):
    before = digests(whole)
    assert main(words(demo17, whole)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert digests(whole) == before
    assert main(words(demo17, whole, "--min_tumor", "0.5")) == 2
    assert "--min_tumor was 0.01, is 0.5" in capsys.readouterr().err


def test_four_processes_write_the_same_files(demo17, whole, tmp_path):
    assert main(words(demo17, tmp_path, "--num_threads", "4")) == 0
    assert digests(tmp_path) == digests(whole)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 10))])
def test_killed_and_started_again_gives_the_same_files(seed, demo17, whole, tmp_path):
    chance = random.Random(seed)
    command = ["-m", "CAMELYON17_PREPROCESSING.preprocess", *words(demo17, tmp_path)]
    process = start_python(command)
    wait_for((tmp_path / "positive" / "slides").exists, process)
    time.sleep(chance.uniform(0, 2.5))
    process.kill()
    process.communicate()
    workers = [line for line in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True,
               check=True).stdout.splitlines() if str(process.pid) in line and "spawn" in line]  # fmt: skip
    assert workers == []
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(whole)


def test_a_bad_slide_is_named_and_leaves_no_patch_and_the_others_are_done(demo17, whole, tmp_path, capsys):
    root = shutil.copytree(demo17, tmp_path / "root with space")
    bad = max((root / "training").rglob("patient*.tif"))
    overwrite_tile(bad, 3, b"\xff\xd9 broken")
    out = tmp_path / "out"
    assert main(words(root, out)) == 1
    said = capsys.readouterr()
    assert f"bad slide, left out: {bad.stem}" in said.err
    assert "1 slides could not be used, all others are done" in said.err
    kept = {name for name in digests(whole) if bad.stem not in name}
    assert {name for name in digests(out) if name in kept} == kept
    assert not [name for name in digests(out) if bad.stem in name]


def test_centres_stride_spacing_and_number_of_patches(demo17, tmp_path):
    more = [
        "--proc_center",
        "1",
        "--spacing",
        "0.5",
        "--stride",
        "64",
        "--max_patches",
        "3",
        "--output_format",
        "jpg",
    ]
    assert main(words(demo17, tmp_path, *more)) == 0
    for kind in ("positive", "negative"):
        rows = table(tmp_path / kind)
        assert {row["center"] for row in rows} == {"1"}
        assert {row["spacing"] for row in rows} == {"0.5"}
        assert all(int(row["x"]) % 128 == int(row["y"]) % 128 == 0 for row in rows)  # 64 pixels of 0.5 µm
        slides = [row["slide"] for row in rows]
        assert max(slides.count(slide) for slide in slides) == 3
        assert len(list((tmp_path / kind).glob("tumor_*.jpg"))) == len(rows)


def test_masks_and_camelyon16_names(demo, tmp_path):
    out = ["--train_tumor_wsi_path", str(demo / "slides"), "--train_tumor_mask_path", str(demo / "masks")]
    folder = tmp_path / "p"
    assert main([*out, "--save_positive_path", str(folder), "--patch_size", "256"]) == 0
    rows = table(folder)
    assert {row["slide"] for row in rows} == {"tumor_001", "tumor_002", "tumor_003"}
    assert rows[0]["patch"].startswith("tumor_center_na_tumor_001_")
    assert not list((tmp_path / "negative").glob("*.png"))


def test_two_folders_with_the_centres_in_one(demo17, whole, tmp_path):
    root = demo17 / "training"
    out = ["--train_tumor_wsi_path", str(root), "--train_tumor_mask_path", str(root / "lesion_annotations")]
    assert main([*out, "--save_positive_path", str(tmp_path / "positive"), *ARGUMENTS]) == 0
    assert digests(tmp_path) == digests(whole)


def test_folders_that_do_not_fit_end_with_2(demo17, demo, tmp_path, capsys):
    out = ["--train_tumor_wsi_path", str(demo17 / "training"), "--train_tumor_mask_path", str(demo / "masks")]
    assert main([*out, "--save_positive_path", str(tmp_path / "positive")]) == 2
    assert "none belong together" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_ends_with_1(demo17, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise store.OutputError("no space left on device")

    monkeypatch.setattr(store, "write_record", full)
    assert main(words(demo17, tmp_path)) == 1
    assert "no space left on device. Make room" in capsys.readouterr().err


def test_a_full_disk_at_the_end_is_1_and_bad_slides_are_named_all_the_same(
    demo17, tmp_path, monkeypatch, capsys
):
    root = shutil.copytree(demo17, tmp_path / "root")
    bad = max((root / "training").rglob("patient*.tif"))
    bad.write_bytes(b"no slide")

    def full(*_: object) -> None:
        raise store.OutputError("no space left on device")

    monkeypatch.setattr(store, "write_tables", full)
    assert main(words(root, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "no space left on device. Make room" in said
    assert f"bad slide, left out: {bad.stem}" in said


def test_a_new_annotation_is_cut_again_and_a_slide_that_is_left_out_loses_its_patches(
    demo17, whole, tmp_path, capsys
):
    root = shutil.copytree(demo17, tmp_path / "root")
    xmls = sorted((root / "training").rglob("*.xml"))
    lacking = {path.stem for path in root.rglob("patient*.tif")} - {xml.stem for xml in xmls}
    new, (gone, negative) = xmls[0], sorted(lacking)
    out, aside = tmp_path / "out", tmp_path / new.name
    new.rename(aside)
    assert main(words(root, out)) == 0
    assert new.stem not in {row["slide"] for row in table(out / "positive")}
    shutil.copy2(aside, new)
    assert main(words(root, out)) == 0
    assert digests(out) == digests(whole)
    stages = [f"{gone}.tif,micro", f"{negative}.tif,negative"]
    (root / "stage_labels.csv").write_text("patient,stage\n" + "\n".join(stages) + "\n")
    assert main(words(root, out)) == 0
    left = digests(out)
    assert not [name for name in left if gone in name]
    kept = {name for name in digests(whole) if gone not in name and not name.endswith(".csv")}
    assert {name for name in left if not name.endswith(".csv")} == kept


def test_an_annotation_of_which_nothing_can_be_used_is_a_bad_slide_and_parts_are_a_warning(
    demo17, tmp_path, capsys
):
    root = shutil.copytree(demo17, tmp_path / "root")
    first, second = sorted((root / "training").rglob("*.xml"))[:2]
    text = first.read_text()
    group = re.findall(r'PartOfGroup="(\w+)"', text)[0]
    first.write_text(text.replace(f'PartOfGroup="{group}"', 'PartOfGroup="whatever"'))
    dot = '<Annotation Name="d" Type="Dot" PartOfGroup="metastases"><Coordinates>' \
          '<Coordinate Order="0" X="5" Y="5"/></Coordinates></Annotation>'  # fmt: skip
    second.write_text(second.read_text().replace("</Annotations>", dot + "</Annotations>"))
    assert main(words(root, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert f"bad slide, left out: {first.stem}" in said
    assert "no annotation that could be used" in said
    assert any(line.startswith("warning:") and second.stem in line for line in said.splitlines())


def test_tumour_slides_without_annotation_are_not_taken_as_tumour_free(demo, tmp_path, capsys):
    masks = shutil.copytree(demo / "masks", tmp_path / "masks")
    (masks / "tumor_002_mask.tif").unlink()
    out = ["--train_tumor_wsi_path", str(demo / "slides"), "--train_tumor_mask_path", str(masks)]
    folder = tmp_path / "p"
    assert main([*out, "--save_positive_path", str(folder), "--patch_size", "256", "--save_neg"]) == 0
    assert "1 slides with tumour but without a label" in capsys.readouterr().err
    assert not [name for name in digests(tmp_path) if "tumor_002" in name and "masks" not in name]


def test_a_picture_that_cannot_be_drawn_makes_a_bad_slide(demo17, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise ReadError("tile 7")

    monkeypatch.setattr(cut, "picture_of", broken)
    source = SourceSlide(SlidePair(next(demo17.rglob("patient*.tif")), None))
    with pytest.raises(BadSlideError, match="tile 7"):
        cut.draw(source, PatchSettings(patch_size=128, save_png=True), Folders(tmp_path, tmp_path),
                 {"positive": [], "negative": []})  # fmt: skip


def test_another_folder_for_negatives_is_refused(demo17, whole, tmp_path, capsys):
    assert main(words(demo17, whole, "--save_tumor_negative_path", str(tmp_path))) == 2
    assert "--save_tumor_negative_path was ../negative" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "--root"),
        (["--root", "/nowhere"], "/nowhere"),
        (["--root", ".", "--train_tumor_wsi_path", "."], "either"),
        (["--root", ".", "--train_tumor_mask_path", "."], "--train_tumor_mask_path"),
        (["--root", ".", "--save_tumor_negative_path", "x"], "--save_neg"),
        (["--root", ".", "--seed", "3"], "--max_patches"),
    ],
)
def test_wrong_options_end_with_2(wrong, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(wrong)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_no_known_layout_ends_with_2(tmp_path, capsys):
    assert main(["--root", str(tmp_path), "--save_positive_path", str(tmp_path / "p")]) == 2
    assert "neither CAMELYON17's layout nor CAMELYON16's" in capsys.readouterr().err


@pytest.mark.mpi
def test_two_ranks_write_the_same_files(demo17, whole, tmp_path):
    command = ["-m", "CAMELYON17_PREPROCESSING.preprocess", *words(demo17, tmp_path)]
    done = run_python(command, ranks=2)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(whole)


def test_places_lie_on_one_grid_and_meet_tumour_or_enough_tissue():
    tissue, tumour = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    tissue[:10, :15] = True
    tumour[15, 25] = True
    found = places(tissue, tumour, (10.0, 10.0), (300, 200), 100, 100.0, 0.5)
    assert [(place.x_l0, place.y_l0, place.tissue) for place in found] == [
        (0, 0, 1.0),
        (100, 0, 0.5),
        (200, 100, 0.0),
    ]


def test_background_is_flat_or_black():
    noise = np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    assert not is_background(noise)
    assert is_background(np.full((64, 64, 3), 240, np.uint8))
    black = noise.copy()
    black[:8] = 0
    assert is_background(black)


def test_both_scripts_pass_their_arguments_on(tmp_path):
    for script in (ROOT / "run_prepro.sh", ROOT / "CAMELYON17_PREPROCESSING" / "run_prepro.sh"):
        done = subprocess.run(["sh", str(script), "--root", "no such folder"], capture_output=True, text=True,
                              cwd=tmp_path, check=False)  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "there is no folder no such folder" in done.stderr
