"""Biopsies and specks on slides of 97,280 × 215,040 pixels: their tissue is found, however little it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from samplers import SamplerConfig, SlidePair, training_loader
from samplers.labels.label_map import LabelMap
from samplers.pairs.checks import check_pair
from samplers.reader import tissue_of
from samplers.slides.slide import Slide
from samplers.validation import validation_patches
from tests.helpers.small_tissue import HEIGHT, WIDTH, Box, write_small_tissue
from utils.cli import UserError

SMALL = [(40_000, 90_000, 40_000 + WIDTH * 8 // 100, 90_000 + HEIGHT * 8 // 100)]  # 0.6 % of the slide
NEEDLE = [(30_000, 20_000, 32_400, 70_000)]  # a core of 0.6 × 12.5 mm
SPECKS = [
    (x, y, x + 800, y + 800) for x, y in ((9_000, 8_000), (50_001, 120_003), (88_000, 200_000))
]  # 0.2 mm


def cells_of(slide: Slide, pieces: Sequence[Box], cell: tuple[float, float]) -> list[tuple[int, int]]:
    """Return row and column of the cells in the middle of the pieces."""
    return [(int((top + bottom) / 2 / cell[1]), int((left + right) / 2 / cell[0]))
            for left, top, right, bottom in pieces]  # fmt: skip


@pytest.mark.parametrize("pieces", [SMALL, NEEDLE, SPECKS], ids=["small", "needle", "specks"])
def test_little_tissue_is_found_and_sampled(tmp_path: Path, pieces: list[Box]) -> None:
    path = write_small_tissue(tmp_path / "slide.tif", pieces)
    assert check_pair(path, None, LabelMap(), 1024) == []
    with Slide(path) as slide:
        _, tissue, cell = tissue_of(slide, 7)
        assert all(tissue[place] for place in cells_of(slide, pieces, cell))
    config = SamplerConfig("surf", img_size=1024, batch_size=4, batch_tumor_ratio=0)
    pairs = [SlidePair(path, None)]
    with training_loader(pairs, config, 0, 1, processes=0) as loader:
        batch = next(iter(loader))
    assert all(image.min() < 230 for image in batch.images)
    assert len(validation_patches(pairs, config)) >= len(pieces)


def test_a_slide_without_tissue_is_refused(tmp_path: Path) -> None:
    dust = [(50_000, 50_000, 50_040, 50_040)]  # 10 µm
    for pieces in ([], dust):
        path = write_small_tissue(tmp_path / "slide.tif", pieces)
        assert check_pair(path, None, LabelMap(), 1024) == [f"{path}: no tissue"]
        with pytest.raises(UserError, match="neither tissue nor a lesion"):
            validation_patches([SlidePair(path, None)], SamplerConfig("surf", img_size=1024, batch_size=1))


@pytest.mark.parametrize(("spacing", "shrinks"), [(1.0, (1, 32, 256)), (0.25, (1, 4, 16, 64, 256, 1024))])
def test_a_level_that_is_too_coarse_is_not_taken(
    tmp_path: Path, spacing: float, shrinks: tuple[int, ...]
) -> None:
    side = int(150 / spacing)  # 0.15 mm
    pieces = [(x + 30, y + 50, x + 30 + side, y + 50 + side) for x, y in ((20_480, 61_440), (80_000, 99_999))]
    path = write_small_tissue(tmp_path / "slide.tif", pieces, spacing, shrinks)
    assert check_pair(path, None, LabelMap(), 1024) == []
    with Slide(path) as slide:
        _, tissue, cell = tissue_of(slide, 7)
        assert cell[0] * spacing < 66
        assert all(tissue[place] for place in cells_of(slide, pieces, cell))


def test_large_patches_are_validated_where_none_is_a_tenth_tissue(tmp_path: Path) -> None:
    path = write_small_tissue(tmp_path / "slide.tif", [*SPECKS, (70_000, 30_000, 72_000, 32_000)])
    config = SamplerConfig("surf", img_size=8192, batch_size=1)
    patches = [patch for _, patch in validation_patches([SlidePair(path, None)], config)]
    assert [(p.x_l0 <= 70_000 < p.x_l0 + 8192, p.y_l0 <= 30_000 < p.y_l0 + 8192) for p in patches] == [
        (True, True)
    ]
