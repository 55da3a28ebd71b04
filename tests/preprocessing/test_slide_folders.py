"""Slides that are folders give the patches of the same slides as TIFF, and are cut again when a file has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tifffile

from CAMELYON17_PREPROCESSING.preprocess import main
from tests.helpers.dicom_slide import write_dicom
from tests.helpers.lesion_slides import make_slide
from tests.helpers.preprocessing import digests

NAMES = ("1.2.840.1", "tumor_002")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same slides as TIFF and as DICOM. Outlines are beside each."""
    tiff, dicom = tmp_path / "tif", tmp_path / "dcm"
    tiff.mkdir()
    for name in NAMES:
        pair = make_slide(tiff, name, label="xml", downsamples=(1,))
        write_dicom(dicom / name, tifffile.imread(pair.slide), 0.5, downsamples=(1,), jpeg=False)
        shutil.copy(str(pair.label), dicom)
    return tiff, dicom


def words(slides: Path, out: Path) -> list[str]:
    return [
        *(
            "--train_tumor_wsi_path",
            str(slides),
            "--train_tumor_mask_path",
            str(slides),
            "--format",
            slides.name,
        ),
        *("--save_positive_path", str(out), "--patch_size", "128", "--save_neg", "--num_threads", "1"),
        *("--min_tumor", "0.001"),
    ]


def test_the_patches_are_the_same(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    found = []
    for slides in folders:
        out = tmp_path / f"{slides.name} patches"
        assert main(words(slides, out)) == 0
        found.append({name: d for name, d in digests(out).items() if name.endswith((".png", ".csv"))})
    assert found[0] == found[1]
    assert any(f"patches/{NAMES[0]}/" in name for name in found[0])
    capsys.readouterr()
    assert main(words(folders[1], out)) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_bad_one_is_named(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    file = folders[1] / NAMES[0] / "level_0.dcm"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(words(folders[1], tmp_path / "out")) == 1
    assert f"bad slide, left out: {NAMES[0]}" in capsys.readouterr().err
