"""The reader of pairs: they stay open as far as memory allows, and a read that failed is tried once more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from samplers import SamplerConfig, SlidePair, reader
from samplers.reader import BadSlideError, OpenPair, PairReader
from samplers.surf import SurfSampler
from tests.helpers.tiny_slides import overwrite_tile, texture, write_jpeg, write_levels

CONFIG = SamplerConfig("surf", img_size=32, batch_size=1)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each pair was opened."""
    counts: Counter[str] = Counter()
    original = OpenPair.__init__

    def counted(self: OpenPair, pair: SlidePair, config: SamplerConfig) -> None:
        counts[pair.name] += 1
        original(self, pair, config)

    monkeypatch.setattr(OpenPair, "__init__", counted)
    return counts


def links(folder: Path, count: int) -> list[SlidePair]:
    slide = write_jpeg(folder / "slide.tif", texture(100, 80))
    mask = write_levels(folder / "mask.tif", [np.ones((80, 100), np.uint8)])
    pairs = []
    for number in range(count):
        pairs.append(SlidePair(folder / f"{number}.tif", folder / f"{number}_mask.tif"))
        pairs[-1].slide.hardlink_to(slide)
        pairs[-1].label.hardlink_to(mask)  # type: ignore[union-attr]
    return pairs


def test_500_pairs_stay_open(tmp_path: Path, opened: Counter[str]) -> None:
    pairs = links(tmp_path, 500)
    pair_reader = PairReader(CONFIG)
    for _ in range(2):
        for pair in pairs:
            assert pair_reader.read(pair, lambda o: o.read_label(5, 5)).all()
            assert pair_reader.read(pair, lambda o: o.read_image(5, 5)).shape == (32, 32, 3)
    assert set(opened.values()) == {1}
    pair_reader.close()


def test_decoded_pictures_count_and_the_least_recently_used_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Counter[str]
) -> None:
    pairs = [SlidePair(tmp_path / f"{number}.png", None) for number in range(4)]
    for pair in pairs:
        cv2.imwrite(str(pair.slide), texture(100, 80))
    monkeypatch.setattr(reader, "MAX_BYTES", 3 * 100 * 80 * 3)
    pair_reader = PairReader(CONFIG)
    for number in (0, 1, 2, 0, 3, 0, 2, 1):
        pair_reader.read(pairs[number], lambda o: o.read_image(0, 0))
    assert opened == {"0": 1, "1": 2, "2": 1, "3": 1}


def test_a_slide_that_was_mended_is_read(tmp_path: Path, opened: Counter[str]) -> None:
    (pair,) = links(tmp_path, 1)
    content = pair.slide.read_bytes()
    overwrite_tile(pair.slide, 0, b"\0")
    pair_reader = PairReader(CONFIG)
    with pytest.raises(BadSlideError, match=r"0\.tif: level 0"):
        pair_reader.read(pair, lambda o: o.read_image(0, 0))
    assert opened["0"] == 2
    pair.slide.write_bytes(content)
    assert pair_reader.read(pair, lambda o: o.read_image(0, 0)).shape == (32, 32, 3)


def test_annotations_count_once_they_are_found(tmp_path: Path) -> None:
    pairs = links(tmp_path, 1)
    pair_reader = PairReader(CONFIG)
    before = pair_reader.read(pairs[0], lambda o: o.held_bytes)
    pair_reader.read(pairs[0], lambda o: o.label.annotations())
    assert pair_reader._open.cost > before


def test_regions_stay_as_far_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = links(tmp_path, 6)
    sampler = SurfSampler(pairs, CONFIG, 0, 1)
    size = sampler._regions_of(pairs[0]).nbytes
    assert 0 < size < 5000
    monkeypatch.setattr("samplers.surf.MAX_REGION_BYTES", 3 * size)
    sampler = SurfSampler(pairs, CONFIG, 0, 1)
    for pair in pairs:
        sampler._regions_of(pair)
    assert len(sampler._regions) == 3
