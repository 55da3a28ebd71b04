"""Small slides with odd levels, a mask, and a JPEG slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.slide_arrays import FACTORS, HEIGHT, WIDTH
from tests.helpers.tiny_slides import shrink, texture, write_jpeg, write_levels


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return texture(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> Path:
    """A slide whose levels are not powers of two."""
    path = tmp_path_factory.mktemp("odd") / "odd.tif"
    return write_levels(path, [shrink(array, factor) for factor in FACTORS], tile=32)


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    values = array[:, :, 0]
    return write_levels(path, [shrink(values, factor) for factor in (1, 3)], tile=32)


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    return write_jpeg(tmp_path / "jpeg.tif", texture(300, 200))
