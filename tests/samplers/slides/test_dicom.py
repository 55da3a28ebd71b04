"""DICOM slides: folders with a file for each level."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from samplers.labels.label_map import LabelMap
from samplers.pairs.checks import check_pair
from samplers.slides.errors import DataError, ReadError
from samplers.slides.slide import Slide
from tests.helpers.dicom_slide import write_ct, write_dicom
from tests.helpers.tiny_slides import texture, write_levels

WIDTH, HEIGHT = 700, 500
PIXELS = texture(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dicom(tmp_path_factory.mktemp("some slides") / "S12.3456 HE", PIXELS, label=True)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / whole.name)


def reasons(path: Path) -> list[str]:
    return check_pair(path, None, LabelMap(), 128, 0.25)


def test_it_is_read_like_the_same_picture_as_tiff(whole: Path, tmp_path: Path) -> None:
    levels = [
        PIXELS,
        *(cv2.resize(PIXELS, None, fx=1 / n, fy=1 / n, interpolation=cv2.INTER_AREA) for n in (2, 4)),
    ]
    tiff = write_levels(tmp_path / "a.tif", levels, 0.25)
    raw = write_dicom(tmp_path / "raw", PIXELS, jpeg=False)
    with Slide(whole) as jpeg, Slide(raw) as exact, Slide(tiff) as same:
        for slide in (jpeg, exact):
            assert (slide.level_sizes, slide.downsamples) == (same.level_sizes, same.downsamples)
            assert (slide.spacing, slide.spacing_known, slide.origin) == (0.25, True, (0, 0))
            assert slide.remarks == []
        for place in (
            (0, 0, WIDTH, HEIGHT),
            (63, 65, 200, 100),
            (WIDTH - 1, HEIGHT - 1, 1, 1),
            (8, 4, 100, 90, 2),
        ):
            assert np.array_equal(exact.read(*place), same.read(*place))
        difference = jpeg.read(0, 0, WIDTH, HEIGHT).astype(int) - PIXELS
        assert np.abs(difference).mean() < 4  # quality 90, of noise
        assert np.abs(difference.mean(axis=(0, 1))).max() < 0.5
    assert reasons(whole) == []


def test_without_spacing(tmp_path: Path) -> None:
    (reason,) = reasons(write_dicom(tmp_path / "a", PIXELS, spacing=None))
    assert "a: the spacing is missing" in reason


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("part", [0.0, 0.0005, 0.002, 0.004, 0.1, 0.5, 0.9, 0.99])
def test_a_file_that_is_truncated_anywhere(folder: Path, level: int, part: float) -> None:
    """OpenSlide would read the slide without this level."""
    file = folder / f"level_{level}.dcm"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    (reason,) = reasons(folder)
    assert reason.startswith(str(folder))


def test_a_header_that_is_cut_before_the_pixels(folder: Path) -> None:
    """It is whole as far as it is looked at, but not for OpenSlide."""
    file = folder / "level_1.dcm"
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"\x00\x52\x29\x92") + 4])  # SharedFunctionalGroupsSequence
    assert reasons(folder) == [f"{folder}: level_1.dcm cannot be read: it is truncated or damaged"]


def test_other_files_in_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "README.txt").write_text("not .dcm")
    (folder / "._level_0.dcm").write_text("hidden")
    assert reasons(folder) == []
    extra = folder / "b.DCM"
    extra.write_text("not a DICOM file " * 20)
    assert reasons(folder) == [f"{folder}: b.DCM is no DICOM file"]
    write_ct(extra)
    assert reasons(folder) == [f"{folder}: b.DCM is no whole slide but CT Image Storage"]
    shutil.copy(write_dicom(tmp_path / "other", PIXELS) / "level_1.dcm", extra)
    (reason,) = reasons(folder)
    assert "has files of 2 DICOM series" in reason
    extra.unlink()
    extra.symlink_to("nowhere")
    (reason,) = reasons(folder)
    assert reason.startswith(f"{folder}: b.DCM cannot be read: ")


def test_a_folder_without_levels_and_a_file_that_is_given_alone(folder: Path) -> None:
    assert "is one file of a DICOM slide" in reasons(folder / "level_0.dcm")[0]
    for level in range(3):
        (folder / f"level_{level}.dcm").unlink()
    assert reasons(folder) == [f"{folder}: has no file with a level of a slide (ImageType VOLUME)"]
    (folder / "label.dcm").unlink()
    assert reasons(folder) == [f"{folder}: is a folder without .dcm files"]


def test_a_missing_level_is_not_read_and_the_largest_is_missed(folder: Path) -> None:
    (folder / "level_1.dcm").unlink()
    with Slide(folder) as slide:
        assert slide.downsamples == (1.0, 4.0)
        assert slide.remarks == []
    (folder / "level_0.dcm").unlink()
    with Slide(folder) as slide:
        assert slide.downsamples == (1.0,)
        (remark,) = slide.remarks
    assert "175 × 125 pixels) calls itself resampled: if the file of a larger one is missing" in remark


def test_a_level_of_several_files(whole: Path, folder: Path) -> None:
    """A concatenation: each file has a part of the level's tiles."""
    data = pydicom.dcmread(folder / "level_0.dcm")
    (folder / "level_0.dcm").unlink()
    tiles = list(generate_frames(data.PixelData, number_of_frames=data.NumberOfFrames))
    data.ConcatenationUID, data.InConcatenationTotalNumber = generate_uid(), 2
    for number, (first, stop) in enumerate(((0, 40), (40, len(tiles))), 1):
        data.InConcatenationNumber, data.ConcatenationFrameOffsetNumber = number, first
        data.NumberOfFrames, data.PixelData = stop - first, encapsulate(tiles[first:stop])
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.save_as(folder / f"level_0_{number}.dcm")
    with Slide(whole) as one, Slide(folder) as several:
        assert several.level_sizes == one.level_sizes
        assert np.array_equal(several.read(0, 0, WIDTH, HEIGHT), one.read(0, 0, WIDTH, HEIGHT))
    assert reasons(folder) == []
    (folder / "level_0_2.dcm").unlink()
    (reason,) = reasons(folder)
    assert reason.startswith(f"{folder}: cannot be opened: Found only one SOP instance in concatenation")


def test_open_slides_hold_no_descriptors_and_little_memory(whole: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Slide(whole) as first:
        first.read(0, 0, 64, 64)
        before = descriptors()
        slides = [Slide(whole) for _ in range(20)]
        for slide in slides:
            slide.read(0, 0, 64, 64)
            slide.read(0, 0, 64, 64, 2)
        assert descriptors() == before
        assert 3 * 16384 < slides[0].held_bytes < 1 << 20  # OpenSlide keeps two blocks of 8 kB of each file
        for slide in slides:
            slide.close()


def test_a_read_that_fails_is_possible_when_the_file_is_whole_again(folder: Path) -> None:
    with Slide(folder) as slide:
        content = (folder / "level_0.dcm").read_bytes()
        (folder / "level_0.dcm").write_bytes(content[:5000])
        with pytest.raises((ReadError, DataError), match=r"S12\.3456 HE"):
            slide.read(600, 400, 64, 64)
        (folder / "level_0.dcm").write_bytes(content)
    with Slide(folder) as slide:
        assert slide.read(600, 400, 64, 64).shape == (64, 64, 3)
