"""Polygons that windows have cut are joined to what they are when they are traced at once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import shapely

from prediction import outlines
from prediction.outlines import trace
from prediction.raster import Raster


def traced(path: Path, classes: np.ndarray, labels: np.ndarray, side: int, window: int) -> dict:
    height, width = classes.shape
    with pytest.MonkeyPatch.context() as patch, closing(Raster(path, width, height)) as raster:
        patch.setattr(outlines, "WINDOW", window)
        raster.write(0, 0, classes)
        return {(number, outline.value): outline.polygons for number, found in trace(raster, labels, side).items()
                for outline in found}  # fmt: skip


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("classes", [1, 2])
def test_windows_change_nothing(tmp_path: Path, share: float, classes: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        side, shape = int(rng.integers(1, 4)), rng.integers(3, 10, 2)
        labels = rng.integers(0, 3, shape).astype(np.int32) if seed % 2 else np.ones(shape, np.int32)
        height, width = shape * side - rng.integers(0, side, 2)
        pixels = (
            rng.integers(1, classes + 1, (height, width)) * (rng.random((height, width)) < share)
        ).astype(np.uint8)
        whole = traced(tmp_path / "whole", pixels, labels, side, 4096)
        for window in (1, 2, 5):
            found = traced(tmp_path / f"{seed}_{window}", pixels, labels, side, window * side)
            assert found.keys() == whole.keys()
            for key, polygons in found.items():
                assert [shapely.to_wkt(p) for p in polygons] == [shapely.to_wkt(p) for p in whole[key]]
                assert shapely.is_valid(polygons).all()
        numbers = labels.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
        for (number, value), polygons in whole.items():
            assert shapely.area(polygons).sum() == ((numbers == number) & (pixels == value)).sum()


def test_a_ring_around_an_island_around_a_hole_over_many_windows(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    for inset, value in ((2, 1), (9, 0), (17, 1), (25, 0), (30, 1)):
        pixels[inset : 64 - inset, inset : 64 - inset] = value
    pixels[30, 29] = 1
    found = traced(tmp_path / "raster", pixels, np.ones((64, 64), np.int32), 1, 8)[1, 1]
    assert [len(polygon.interiors) for polygon in found] == [1, 1, 0]
    assert [polygon.area for polygon in found] == [60**2 - 46**2, 30**2 - 14**2, 4**2 + 1]
