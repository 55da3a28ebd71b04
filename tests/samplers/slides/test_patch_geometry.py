"""The check of the slides and the reader of the patches agree on which slides are large enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samplers import SamplerConfig, SlidePair
from samplers.labels.label_map import LabelMap
from samplers.pairs.checks import check_pair
from samplers.reader import OpenPair
from samplers.slides.errors import DataError
from tests.helpers.tiny_slides import texture, write_levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


def refused_by_check_and_reader(path: Path, img_size: int, resolution: float | None) -> tuple[bool, bool]:
    """Whether each refuses the slide; where the reader takes it, the patches of all corners are read."""
    config = SamplerConfig("surf", img_size, batch_size=1, resolution=resolution)
    refused = bool(check_pair(path, None, LabelMap(), img_size, resolution))
    try:
        opened = OpenPair(SlidePair(path, None), config)
    except DataError:
        return refused, True
    try:
        for x_l0 in (0, opened.slide.width - opened.size_l0):
            for y_l0 in (0, opened.slide.height - opened.size_l0):
                assert opened.read_image(x_l0, y_l0).shape == (img_size, img_size, 3)
                assert opened.read_label(x_l0, y_l0).shape == (img_size, img_size)
    finally:
        opened.close()
    return refused, False


@given(
    img_size=st.integers(1, 60),
    more=st.integers(-3, 3),
    spacing=st.floats(0.1, 2.0),
    ratio=st.one_of(st.none(), st.floats(0.3, 4.0), st.floats(0.998, 1.002), st.sampled_from([0.5, 1, 2, 3])),
)
@example(img_size=1024, more=-1, spacing=0.25, ratio=None)
@example(img_size=1024, more=-1, spacing=0.25, ratio=2)
@settings(max_examples=60, deadline=None)
def test_the_check_refuses_what_the_reader_refuses(
    folder: Path, img_size: int, more: int, spacing: float, ratio: float | None
) -> None:
    """Slides of about the size of a patch, up to three pixels smaller or larger."""
    side = max(1, int(np.ceil(img_size * (ratio or 1))) + more)
    path = write_levels(folder / "slide.tif", [texture(side + 5, side)], spacing)
    checked, read = refused_by_check_and_reader(path, img_size, ratio and spacing * ratio)
    assert checked == read


@pytest.mark.parametrize(("side", "resolution", "size_l0"), [(1023, None, 1024), (2047, 0.5, 2048)])
def test_a_slide_one_pixel_smaller_than_a_patch_is_refused_by_both(
    folder: Path, side: int, resolution: float | None, size_l0: int
) -> None:
    path = write_levels(folder / "small.tif", [texture(side, side)])
    (reason,) = check_pair(path, None, LabelMap(), 1024, resolution)
    assert reason.endswith(f"{side} × {side} pixels are smaller than a patch of {size_l0} × {size_l0}")
    assert refused_by_check_and_reader(path, 1024, resolution) == (True, True)
