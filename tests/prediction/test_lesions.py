"""The lesions of a predicted slide, whatever the size of the cells on which they are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prediction import lesions
from prediction.grid import Frame
from prediction.lesions import cells_of, lesions_of
from prediction.raster import Raster

SIDE = 600


@pytest.mark.parametrize(("most", "side"), [(1 << 20, 1), (1500, 16)])
def test_the_confidence_is_the_mean_probability_of_the_pixels(
    most: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the cells' highest, which are near 1 on large slides, where a cell has thousands of pixels."""
    monkeypatch.setattr(lesions, "MAX_CELLS", most)
    probability, classes = (Raster(tmp_path / name, SIDE, SIDE) for name in ("probability", "classes"))
    rng, expected = np.random.default_rng(0), []
    for left, low in ((70, 140), (400, 200)):
        values = np.where(rng.random((90, 90)) < 0.1, 255, low).astype(np.uint8)
        probability.write(left, 500, values)
        classes.write(left, 500, np.ones_like(values))
        expected.append(values.mean() / 255)
    cells = cells_of(probability, classes)
    assert cells.side == side
    found, _ = lesions_of(cells, Frame(SIDE, SIDE, 1.0, 10.0), probability, classes, 0.1)
    assert [lesion.confidence for lesion in found] == pytest.approx(expected, abs=1e-12)
