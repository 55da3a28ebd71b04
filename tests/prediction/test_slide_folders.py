"""Prediction of slides that are folders: the files are those of the same slide as a TIFF."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile

from predict import main
from tests.helpers.dicom_slide import write_dicom
from tests.helpers.predicting import digests, pixels, record, words
from tests.helpers.tiny_slides import texture

NAME = "1.2.840.1"  # as a series is called


@pytest.fixture(scope="module")
def pair(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a TIFF, and the folder of the same slide as DICOM."""
    tiff, dicom = tmp_path_factory.mktemp("tiff"), tmp_path_factory.mktemp("some DICOM")
    content = (slides / "tumor_001.tif").read_bytes()
    (tiff / f"{NAME}.tif").write_bytes(content)
    array = tifffile.TiffFile(tiff / f"{NAME}.tif").pages[0].asarray()
    write_dicom(dicom / NAME, array, 0.5, downsamples=(1, 3, 9), jpeg=False)
    return tiff, dicom


def test_the_files_are_the_same(toys: Path, pair: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    found = []
    for kind, folder in zip(("tiff", "dicom"), pair):
        # The levels of the two differ a little, so all patches are predicted, whatever is tissue.
        assert main(words(toys / "lesion", folder, tmp_path / kind, "--no-tissue_only")) == 0
        files = digests(tmp_path / kind)
        found.append({name: digest for name, digest in files.items() if "overlay" not in name})
    assert found[0] == found[1]
    assert (pixels(tmp_path / "dicom", NAME) > 0).any()
    assert record(tmp_path / "dicom", NAME)["path"] == str(pair[1] / NAME)
    assert main(words(toys / "lesion", pair[1] / NAME, tmp_path / "dicom", "--no-tissue_only")) == 0
    assert "1 of them are finished already" in capsys.readouterr().out


def test_a_bad_one_is_named(toys: Path, pair: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    good, bad = write_small(tmp_path / "good"), write_small(tmp_path / "bad")
    (bad / "level_0.dcm").write_bytes((bad / "level_0.dcm").read_bytes()[:-50])
    assert main(words(toys / "lesion", good, tmp_path / "out", "--slide_path", str(good), str(bad))) == 1
    assert "bad slide, left out: bad" in capsys.readouterr().err
    assert [path.stem for path in (tmp_path / "out" / "slides").iterdir()] == ["good"]


def write_small(folder: Path) -> Path:
    return write_dicom(folder, texture(300, 300), 0.5, downsamples=(1, 2))
