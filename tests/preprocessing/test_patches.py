"""Slides into patches: which are cut, and what is written."""

from __future__ import annotations

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from CAMELYON17_PREPROCESSING import sources
from CAMELYON17_PREPROCESSING.grid import is_background, places
from CAMELYON17_PREPROCESSING.preprocess import main
from CAMELYON17_PREPROCESSING.settings import SourceSlide
from CAMELYON17_PREPROCESSING.sources import _names_below
from CAMELYON17_PREPROCESSING.store import KINDS, Folders, is_finished, record_of, write_record
from samplers import SamplerConfig, training_loader
from samplers.labels.label import LabelMap, open_label
from samplers.pairs.pairing import SlidePair, find_pairs
from samplers.slides.slide import Slide
from tests.helpers.preprocessing import ARGUMENTS, digests, table, words


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
    assert not list((tmp_path / "negative").rglob("*.png"))


def test_two_folders_with_the_centres_in_one(demo17, whole, tmp_path):
    root = demo17 / "training"
    out = ["--train_tumor_wsi_path", str(root), "--train_tumor_mask_path", str(root / "lesion_annotations")]
    out += ["--save_positive_path", str(tmp_path / "positive"), *ARGUMENTS, "--unlabelled", "normal"]
    assert main(out) == 0
    assert digests(tmp_path) == digests(whole)


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


def test_a_finished_slide_is_cut_again_when_it_changes_or_turns_out_to_be_annotated_in_part(tmp_path):
    slide = tmp_path / "tumor_1.tif"
    slide.write_bytes(b"slide")
    folders = Folders(tmp_path / "positive", tmp_path / "negative")
    (folders.positive / "slides").mkdir(parents=True)
    source = SourceSlide(SlidePair(slide, None))
    write_record(folders, source, {kind: [] for kind in KINDS}, {})
    assert is_finished(folders, source)
    assert not is_finished(folders, SourceSlide(SlidePair(slide, None, partly_annotated=True)))
    slide.write_bytes(b"another slide")
    assert not is_finished(folders, source)
    # A record of an earlier version says nothing of its slide.
    path = record_of(folders, source.name)
    record = json.loads(path.read_text())
    record["label"] = record.pop("source")[0]
    path.write_text(json.dumps(record))
    assert is_finished(folders, source)


def test_slides_that_are_folders_are_not_looked_into(tmp_path, monkeypatch):
    chunks = tmp_path / "center_0/patient_1.zarr/0/7"
    chunks.mkdir(parents=True)
    (chunks / "0").write_bytes(b"")
    (tmp_path / "center_0/patient_2.tif").write_bytes(b"")
    (tmp_path / "deep/er/patient_3").mkdir(parents=True)
    (tmp_path / "deep/er/patient_3/1.dcm").write_bytes(b"")
    looked, walk = [], os.walk
    monkeypatch.setattr(sources.os, "walk", lambda root: (looked.append(row[0]) or row for row in walk(root)))
    assert sorted(_names_below(tmp_path)) == ["patient_1", "patient_2", "patient_3"]
    assert len(looked) == 4


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
