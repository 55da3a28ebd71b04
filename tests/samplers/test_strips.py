"""The strips of ranks that share a patch are the patch that one rank has, and each rank reads only its strip."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import Batch, SamplerConfig, SamplerError, SlidePair, surf, training_loader, validation_loader
from samplers.labels.label_map import LabelMap
from samplers.reader import OpenPair
from samplers.slides.part import Part
from samplers.slides.slide import Slide
from tests.helpers.groups import assert_same, copy_of, group_batches, joined
from tests.helpers.lesion_slides import HEIGHT, SPACING, WIDTH, make_slide
from tests.helpers.tiny_slides import texture, write_jpeg, write_levels
from utils.ranks.patch_group import strip_rows

CONFIG = SamplerConfig(
    "surf", img_size=96, batch_size=3, batch_tumor_ratio=0.5, augment=True, stain_jitter="strong"
)
OUTLINE = [(30.3, 20.1), (610.7, 90.2), (500.5, 655.9), (402.2, 300.4), (77.7, 431.3)]
HOLE = [(200.2, 150.7), (320.9, 160.1), (260.4, 240.6)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[SlidePair]:
    """Slides with a mask, XML, GeoJSON and without a label; lesions touch every edge."""
    folder = tmp_path_factory.mktemp("strips")
    everywhere = [(0, 0, 60, 80), (940, 0, 1000, 70), (0, 640, 90, 700), (930, 610, 1000, 700)]
    outlined = make_slide(folder, "tumor_3", label=None, downsamples=(1, 5))
    geojson = folder / "tumor_3.geojson"
    shape = shapely.to_geojson(shapely.Polygon(OUTLINE, [HOLE]))
    geojson.write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": '
        f'{shape}, "properties": {{"classification": {{"name": "Tumor"}}}}}}]}}'
    )
    return [
        make_slide(folder, "tumor_1", everywhere, mask_downsamples=(1, 2, 4)),
        make_slide(folder, "tumor_2", [(0, 330, 90, 400), (950, 0, 960, 8)], label="xml"),
        replace(outlined, label=geojson),
        make_slide(folder, "normal_1", [], label=None, downsamples=(1,)),
    ]


def whole_batches(pairs: list[SlidePair], config: SamplerConfig, count: int, *share: int) -> list[Batch]:
    with training_loader(pairs, config, *(share or (0, 1)), processes=0) as loader:
        return [copy_of(batch) for batch in islice(loader, count)]


# Level 0, other levels and each kind of resampling: by whole numbers, by others, finer than level 0.
RESOLUTIONS = [None, 2 * SPACING, 3 * SPACING, 1.37 * SPACING, 4.5 * SPACING, 0.73 * SPACING, SPACING / 2]


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("sampler", ["surf", "radboud"])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_strips_are_the_whole_patch_bit_for_bit(
    pairs: list[SlidePair], resolution: float | None, sampler: str, ranks: int
) -> None:
    config = replace(CONFIG, sampler=sampler, resolution=resolution)
    found, gathering = group_batches(pairs, config, ranks, 8)
    expected = whole_batches(pairs, config, 8)
    assert_same(joined(found), expected)
    assert gathering.meetings >= 8
    assert {batch.images.shape[1] for batch in found[0]} == {strip_rows(96, ranks)[0].height}
    assert any(batch.labels.any() for batch in expected)


@pytest.mark.parametrize("size", [64, 101])
def test_strips_of_unequal_height_and_without_augmentation(pairs: list[SlidePair], size: int) -> None:
    config = replace(CONFIG, img_size=size, resolution=1.37 * SPACING)
    for augment in (False, True):
        found, _ = group_batches(pairs, replace(config, augment=augment), 3, 5)
        assert len({strip.images.shape[1] for strip, *_ in found}) == 2
        assert_same(joined(found), whole_batches(pairs, replace(config, augment=augment), 5))


def test_a_group_draws_what_the_rank_of_its_number_draws_and_workers_change_nothing(
    pairs: list[SlidePair],
) -> None:
    for group in (0, 1, 2):
        found, _ = group_batches(pairs, CONFIG, 2, 4, group, 3, processes=group)
        assert_same(joined(found), whole_batches(pairs, CONFIG, 4, group, 3))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("resolution", [None, 1.37 * SPACING, 0.73 * SPACING])
def test_validation_patches_of_strips(pairs: list[SlidePair], ranks: int, resolution: float | None) -> None:
    config = replace(CONFIG, resolution=resolution, batch_size=4, max_validation_patches=30)
    for group in (0, 1):
        found, _ = group_batches(pairs, config, ranks, None, group, 2, processes=group)
        with validation_loader(pairs, config, group, 2, 0) as loader:
            assert_same(joined(found), [copy_of(batch) for batch in loader])


def test_what_must_be_known_is_asked_of_the_whole_patch(pairs: list[SlidePair]) -> None:
    label_map = LabelMap.parse(["Tumor:1", "255:1"], "ignore")
    for sampler, least, ratio in product(("surf", "radboud"), (0.05, 0.4), (1.0,)):
        config = replace(
            CONFIG, sampler=sampler, label_map=label_map, min_known=least, batch_tumor_ratio=ratio
        )
        found, _ = group_batches(pairs[:3], config, 3, 6)
        assert_same(joined(found), whole_batches(pairs[:3], config, 6))


def test_each_rank_reads_its_strip_of_the_image_only(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sizes = Slide.read_level, []

    def noted(slide: Slide, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        if slide.kind == "image" and width < slide.level_sizes[level][0]:  # no thumbnail
            sizes.append(width * height)
        return read(slide, x, y, width, height, level)

    monkeypatch.setattr(Slide, "read_level", noted)
    for place in ("agreement.contrast_of_sums_is_low", "draw.contrast_is_low"):  # no patch is drawn again
        monkeypatch.setattr(f"samplers.{place}", lambda pixels: False)
    for resolution, most in ((None, 1.0), (1.37 * SPACING, 1.25), (0.73 * SPACING, 1.25)):
        config = replace(CONFIG, img_size=192, resolution=resolution, batch_tumor_ratio=1.0)
        whole_batches(pairs, config, 6)
        whole = sum(sizes)
        sizes.clear()
        _, gathering = group_batches(pairs, config, 3, 6)
        assert gathering.meetings == 6
        assert whole <= sum(sizes) <= most * whole, resolution
        sizes.clear()


def cut(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
        lambda c: (c[0], min(c[0] + c[1], size))
    )


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(20, 200), st.floats(0.3, 6.0), st.booleans())
def test_any_part_of_any_patch_is_cut_from_the_whole(
    cut_pairs: list[OpenPair], data: st.DataObject, size: int, factor: float, exact: bool
) -> None:
    """Of every kind of label, on JPEG and lossless slides, also at the very edges of the slide."""
    opened = data.draw(st.sampled_from(cut_pairs))
    factor = float(max(1, round(factor))) if exact else factor
    size = min(size, int(HEIGHT / factor) - 1)
    opened.img_size, opened.downsample = size, factor
    opened.spacing = opened.slide.spacing * factor
    limits = [int(extent - np.ceil(size * factor)) for extent in (WIDTH, HEIGHT)]
    x, y = (data.draw(st.one_of(st.just(0), st.just(limit), st.integers(0, limit))) for limit in limits)
    rows, columns = data.draw(cut(size)), data.draw(cut(size))
    part = Part(*rows, *columns)
    np.testing.assert_array_equal(opened.read_label(x, y, part), opened.read_label(x, y)[part.slices])
    np.testing.assert_array_equal(opened.read_image(x, y, part), opened.read_image(x, y)[part.slices])


@pytest.fixture(scope="module")
def cut_pairs(pairs: list[SlidePair], tmp_path_factory: pytest.TempPathFactory) -> list[OpenPair]:
    jpeg = write_jpeg(tmp_path_factory.mktemp("jpeg") / "tumor_3.tif", texture(WIDTH, HEIGHT), SPACING)
    return [OpenPair(pair, CONFIG) for pair in [*pairs, replace(pairs[2], slide=jpeg)]]


def pale_slide(folder: Path) -> SlidePair:
    """A slide of which a quarter has contrast; the rest is uniform tissue, in the whole or in a half of each place."""
    image = np.full((HEIGHT, WIDTH, 3), (200, 120, 180), np.uint8)
    noise = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[:, :200] = noise[:, :200]
    image[:60, 200:] = noise[:60, 200:]  # patches at the edge have contrast in one strip only
    return SlidePair(write_levels(folder / "pale.tif", [image, image[2::4, 2::4]], SPACING), None)


@pytest.mark.parametrize("processes", [0, 2])
def test_pale_patches_are_drawn_again_by_all_ranks_of_the_group(tmp_path: Path, processes: int) -> None:
    pair = pale_slide(tmp_path)
    config = replace(CONFIG, batch_tumor_ratio=0.0, img_size=64, batch_size=4)
    found, gathering = group_batches([pair], config, 3, 6, processes=processes)
    assert_same(joined(found), whole_batches([pair], config, 6))
    assert gathering.meetings > 12  # they agreed on many patches that were pale


def damage(monkeypatch: pytest.MonkeyPatch, bad: dict[str, tuple[int, int]]) -> None:
    """Let reads of slides fail that touch a row between two ones, (first, end) by name of the slide."""
    read = Slide.read_level

    def torn(slide: Slide, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        first, end = bad.get(slide.path.stem, (0, 0))
        if width * height < 200 * 200 and level == 0 and y < end and y + height > first:
            raise OSError(f"{slide.path}: torn at row {first}")
        return read(slide, x, y, width, height, level)

    monkeypatch.setattr(Slide, "read_level", torn)


@pytest.mark.parametrize("sampler", ["surf", "radboud"])
def test_a_strip_that_one_rank_cannot_read_is_drawn_again_by_all(
    pairs: list[SlidePair], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, {"tumor_1": (40, 41), "normal_1": (300, 320)})
    config = replace(CONFIG, sampler=sampler, max_bad_slides=2)
    dropped: dict[int, dict[str, tuple[str, int]]] = {}

    def note(member: int, loader: object) -> None:
        dropped[member] = {slide: (first, 0) for slide, (_, first) in loader.dropped.items()}  # type: ignore[attr-defined]

    found, _ = group_batches(pairs, config, 3, 40, opened=note)
    with training_loader(pairs, config, 0, 1, processes=0) as loader:
        expected = [copy_of(batch) for batch in islice(loader, 40)]
        alone = {slide: (first, 0) for slide, (_, first) in loader.dropped.items()}
    assert_same(joined(found), expected)
    assert "tumor_1" in alone
    assert dropped[0] == dropped[1] == dropped[2] == alone


def test_too_many_bad_slides_end_every_rank_of_the_group_at_the_same_batch(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, {"normal_1": (300, 320)})
    seen: dict[int, int] = {}

    def note(member: int, loader: object) -> None:
        loader._count_bad = counted(member, loader)  # type: ignore[attr-defined]

    def counted(member: int, loader: object) -> object:
        count = loader._count_bad  # type: ignore[attr-defined]

        def noted(index: int, failed: dict[str, str]) -> None:
            seen[member] = index
            count(index, failed)

        return noted

    with pytest.raises(SamplerError, match=r"1 slides could not be read, 0 are allowed"):
        group_batches(pairs, replace(CONFIG, max_bad_slides=0), 2, 200, opened=note)
    assert seen[0] == seen[1]


def test_a_validation_patch_that_one_rank_cannot_read_is_left_out_by_all(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, {"tumor_1": (40, 41)})
    config = replace(CONFIG, max_bad_slides=2)
    found, _ = group_batches(pairs, config, 3, None)
    with validation_loader(pairs, config, 0, 1, 0) as loader:
        expected = [copy_of(batch) for batch in loader]
    assert_same(joined(found), expected)
    monkeypatch.undo()
    with validation_loader(pairs, config, 0, 1, 0) as loader:
        assert sum(len(batch.patches) for batch in loader) > sum(len(batch.patches) for batch in expected)


@pytest.mark.parametrize("sampler", ["surf", "radboud"])
def test_a_slide_that_fails_on_one_rank_alone_is_left_out_by_all(
    pairs: list[SlidePair], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if one node had lost a file: opened there in vain, at the start or while a patch is proposed."""
    init = OpenPair.__init__

    def opening(self: OpenPair, pair: SlidePair, config: SamplerConfig) -> None:
        if config.strips.rows.stop == config.img_size and pair.name == "tumor_2":
            raise OSError("stale file handle")
        init(self, pair, config)

    monkeypatch.setattr(OpenPair, "__init__", opening)
    config = replace(CONFIG, sampler=sampler)
    found, _ = group_batches(pairs, config, 2, 10)
    batches = joined(found)
    assert_same(batches, whole_batches(pairs, config, 10))  # for a single rank has lost it, too
    assert "tumor_2" not in {patch.slide for batch in batches for patch in batch.patches}


def test_a_read_that_fails_once_on_one_rank_changes_nothing(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes while the place of a patch is drawn: the second attempt draws the same place."""
    config = replace(CONFIG, img_size=24, bb_downsample=9)
    slides = [make_slide(pairs[0].slide.parent, "tumor_9", [(300, 200, 420, 330)], downsamples=(1, 60))]
    expected = whole_batches(slides, config, 5)
    point, calls, first = surf._point, itertools.count(), []

    def failing(opened: OpenPair, *arguments: object) -> object:
        found = point(opened, *arguments)  # type: ignore[arg-type]
        first.append(threading.get_ident())
        if threading.get_ident() == first[0] and next(calls) % 2 == 0:
            raise OSError("lost for a moment")
        return found

    monkeypatch.setattr(surf, "_point", failing)
    found, _ = group_batches(slides, config, 2, 5)
    assert_same(joined(found), expected)
    assert next(calls) > 5
