"""Folders: what else is there is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samplers.pairs.folders import files_below, files_of, left_out
from samplers.slides.stored_slide import size_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a.tif",
        "b.TIFF",
        "c.svs",
        "d.svs",
        "e.czi",
        "f",
        "notes.txt",
        "a.xml",
        ".hidden.tif",
        "._a.svs",
    ):
        (tmp_path / name).write_bytes(b"x")
    for name in ("deep/1/2", "data", ".cache"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("deep/1/2/g.tif", "data/index.dat", ".cache/h.tif"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_links_to_nothing_are_files(folder: Path) -> None:
    (folder / "z.tif").symlink_to("nowhere/z.tif")
    (folder / "y.tif").symlink_to(folder / "deep")  # a folder is no slide
    os.symlink("loop.tif", folder / "loop.tif")
    assert [path.name for path in files_of(folder, "tif")] == ["a.tif", "b.TIFF", "loop.tif", "z.tif"]
    assert [size_of(folder / name) for name in ("a.tif", "z.tif")] == [1, 0]


def test_other_files_and_subfolders_with_slides_are_named(folder: Path) -> None:
    others, deeper = left_out(folder, files_of(folder, "tif"), ["tif"], "the slides' format is tif")
    assert "4 other files are left out (1 .czi, 2 .svs, 1 no ending; the slides' format is tif)" in others
    assert others.endswith("c.svs, d.svs, e.czi, f")
    assert "1 subfolders with files of this format are not searched: " in deeper
    assert deeper.endswith("deep")
    assert left_out(folder, folder.iterdir(), ["ndpi"], "") == []


def test_subfolders_that_were_searched_are_not_named_but_what_is_below_them_is(folder: Path) -> None:
    (folder / "deep" / "i.tif").write_bytes(b"x")
    (folder / "deep" / "j.svs").write_bytes(b"x")
    used = files_below([folder], "tif")
    assert [path.name for path in used] == ["a.tif", "b.TIFF", "i.tif"]
    others, deeper = left_out(folder, used, ["tif"], "", depth=1)
    assert "5 other files" in others
    assert deeper.endswith("deep/1")


def test_many_are_counted(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.svs").touch()
    (line,) = left_out(tmp_path, [], ["tif"], "")
    assert "30 other files" in line
    assert line.endswith("09.svs and 20 more")
