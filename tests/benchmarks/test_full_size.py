from pathlib import Path

from benchmarks.full_size import LEVELS, make_slide
from samplers.reader import tissue_of
from samplers.slides.slide import Slide


def test_coarse_levels_show_a_small_tissue(tmp_path: Path) -> None:
    pair = make_slide(tmp_path, 4864, 10752, 0.08)
    with Slide(pair.slide) as slide:
        assert len(slide.level_sizes) == LEVELS
        for level in range(4, LEVELS):  # the finer ones are large
            assert (
                0.003 < (slide.read(0, 0, *slide.level_sizes[level], level).min(axis=2) < 225).mean() < 0.007
            )
        assert tissue_of(slide, 7)[1].any()
