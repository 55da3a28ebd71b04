"""Rasters: what is written is read, whatever the tiles, and what is empty takes no room."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from prediction.raster import TILE, Raster

WIDTH, HEIGHT = 3 * TILE + 77, 2 * TILE + 5


@pytest.fixture
def raster(tmp_path):
    made = Raster(tmp_path / "raster", WIDTH, HEIGHT)
    yield made
    made.discard()


def test_any_rectangles_are_read_as_they_were_written(raster):
    rng = np.random.default_rng(0)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in range(60):
        x, y = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
        width, height = int(rng.integers(1, WIDTH - x + 1)), int(rng.integers(1, HEIGHT - y + 1))
        # Every third one erases what is there.
        pixels = rng.integers(0, 256 if number % 3 else 1, (height, width), dtype=np.uint8)
        raster.write(x, y, pixels)
        expected[y : y + height, x : x + width] = pixels
        x, y = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
        np.testing.assert_array_equal(raster.read(x, y, 900, 700), expected[y : y + 700, x : x + 900])
    last = raster.tile(raster.rows - 1, raster.columns - 1)
    np.testing.assert_array_equal(last[:5, :77], expected[-5:, -77:])
    assert not last[5:].any()
    assert not last[:, 77:].any()


def test_only_tiles_with_pixels_take_room(raster):
    pixels = np.zeros((64, WIDTH), np.uint8)
    pixels[:, 10] = pixels[:, -1] = 9
    raster.write(0, 0, pixels)
    held = [place for place in np.ndindex(raster.rows, raster.columns) if raster.holds(*place)]
    assert held == [(0, 0), (0, 3)]
    assert raster.path.stat().st_blocks * 512 == 2 * 64 * TILE


def test_where_the_file_system_knows_no_holes_every_tile_is_read(raster, monkeypatch):
    def unknown(*_: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    raster.write(700, 20, np.full((3, 4), 5, np.uint8))
    monkeypatch.setattr(os, "lseek", unknown)
    assert raster.read(700, 20, 4, 3).tolist() == [[5] * 4] * 3
    raster.write(701, 21, np.zeros((1, 1), np.uint8))
    assert raster.read(701, 20, 1, 3).ravel().tolist() == [5, 0, 5]
