"""A message that one thread leaves in libvips' buffer must not be taken for damage by another thread's read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips

from CAMELYON17_PREPROCESSING.store import encode
from samplers.slides.part import Part, resample_part, shrink
from samplers.slides.slide import Slide


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of properties that libvips was asked for and does not know: each leaves a message for a moment."""
    names = []
    ask = pyvips.VipsObject._get_pspec

    def asked(self: pyvips.VipsObject, name: str) -> object:
        found = ask(self, name)
        if found is None:
            names.append(name)
        return found

    monkeypatch.setattr(pyvips.VipsObject, "_get_pspec", asked)
    return names


def test_the_way_that_leaves_a_message_is_seen(unknown: list[str]) -> None:
    pyvips.Image.black(8, 8).crop(0, 0, 4, 4)
    assert unknown == ["crop"]


def test_reading_resampling_and_encoding_leave_no_message(unknown: list[str], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 150, 3), np.uint8)
    shrink(pixels, 100, 100)
    whole = Part(0, 150, 0, 150)
    resample_part(pixels, whole, (150, 150), Part(20, 60, 0, 100), (100, 100))
    for format in ("png", "jpg"):
        encode(pixels, format, 0.25)
    opaque = np.dstack([pixels, np.full((150, 150), 255, np.uint8)])
    path = tmp_path / "transparent.png"
    cv2.imwrite(str(path), opaque)
    with Slide(path) as slide:
        slide.read(0, 0, 64, 64)
    assert not unknown
