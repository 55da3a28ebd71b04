"""Regions of a TIFF: how often the file is read, tiles that are kept, threads that meet damage beside whole slides."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from samplers.slides import tiff_reader
from samplers.slides.cache import BoundedCache
from samplers.slides.errors import ReadError
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import overwrite_tile, texture, write_jpeg, write_levels


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads from files."""
    sizes, original = [], os.pread

    def counted(descriptor: int, size: int, position: int) -> bytes:
        sizes.append(size)
        return original(descriptor, size, position)

    monkeypatch.setattr(os, "pread", counted)
    return sizes


def test_a_row_of_tiles_is_one_read_and_the_lists_are_two(tmp_path: Path, reads: list[int]) -> None:
    with Slide(write_jpeg(tmp_path / "s.tif", texture(1000, 600))) as slide:
        reads.clear()
        slide.read(100, 70, 400, 130)  # 3 rows of 7 tiles
        assert len(reads) == 2 + 3
        reads.clear()
        slide.read(120, 80, 300, 100)
        assert not reads  # its tiles are decoded already


def test_tiles_are_kept_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    kept: BoundedCache = BoundedCache(10 * 64 * 64 * 3)
    monkeypatch.setattr(tiff_reader, "_tiles", kept)
    array = texture(640, 640)
    with Slide(write_levels(tmp_path / "s.tif", [array])) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 640, 640), array)
        assert len(kept) == 10
        slide.read(0, 0, 64, 64)  # was dropped
        reads.clear()
        slide.read(0, 0, 64, 64)
        assert not reads


def test_kept_tiles_are_not_those_of_a_file_that_was_written_anew(tmp_path: Path) -> None:
    for seed in (0, 1):
        array = texture(100, 100, seed)
        with Slide(write_levels(tmp_path / "s.tif", [array])) as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 100, 100), array)


def test_threads_meet_damage_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_reader, "_tiles", BoundedCache(1))  # each read decodes
    array = texture(300, 200)
    slides = [Slide(write_jpeg(tmp_path / f"{number}.tif", array)) for number in range(6)]
    good = slides[0].read(10, 10, 200, 150)
    for number in (1, 4):
        overwrite_tile(tmp_path / f"{number}.tif", 6, b"\0")

    def read(turn: int) -> bool:
        slide = slides[turn % 6]
        try:
            if turn % 5 == 0:  # others are opened and closed meanwhile
                Slide(slide.path).close()
            return bool((slide.read(10, 10, 200, 150) == good).all())
        except ReadError as error:
            if not str(error).startswith(f"{slide.path}: level 0, x 10, y 10, 200 × 150: "):
                raise
            return False

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, range(600)))
    assert results == [turn % 6 not in (1, 4) for turn in range(600)]


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("missing", [[6], [5, 6, 7], list(range(20))])
def test_what_is_not_in_the_file_is_blank(tmp_path: Path, kind: str, missing: list[int]) -> None:
    array = texture(300, 200) if kind == "image" else texture(300, 200)[:, :, 0]
    path = write_levels(tmp_path / "s.tif", [array])
    expected = array.copy()
    for number in missing:
        overwrite_tile(path, number)
        row, column = divmod(number, 5)
        expected[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] = 255 if kind == "image" else 0
    with Slide(path, kind) as slide:
        np.testing.assert_array_equal(slide.read(20, 30, 250, 150), expected[30:180, 20:270])
