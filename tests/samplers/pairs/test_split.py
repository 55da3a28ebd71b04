"""The split into training and validation: whole, seeded, stratified, by patient and by slide."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.pairs.names import patient_pattern, slide_of_patch
from samplers.pairs.pairing import SlidePair
from samplers.pairs.split import split_pairs
from samplers.slides.errors import DataError
from utils.cli import UserError


def pairs_of(*names: str, labelled: bool = True) -> list[SlidePair]:
    return [SlidePair(Path(f"{name}.tif"), Path(f"{name}.xml") if labelled else None) for name in names]


@given(
    tumour=st.integers(0, 20), normal=st.integers(0, 20), part=st.floats(0.01, 0.9), seed=st.integers(0, 99)
)
@settings(max_examples=150, deadline=None)
def test_split_is_whole_seeded_and_stratified(tumour: int, normal: int, part: float, seed: int) -> None:
    pairs = pairs_of(*(f"tumor_{i}" for i in range(tumour)))
    pairs += pairs_of(*(f"normal_{i}" for i in range(normal)), labelled=False)
    if len(pairs) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split_pairs(pairs, part, seed)
        return
    train, val = split_pairs(pairs, part, seed)
    assert train
    assert val
    assert train == [pair for pair in pairs if pair not in val]
    assert val == [pair for pair in pairs if pair not in train]
    assert abs(len(val) - part * len(pairs)) <= 2
    for side in (train, val):
        assert tumour < 2 or any(pair.label for pair in side)
    assert split_pairs(pairs[::-1], part, seed) == (train[::-1], val[::-1])


def test_split_depends_on_the_seed() -> None:
    pairs = pairs_of(*(f"tumor_{i:03}" for i in range(30)))
    assert len({tuple(split_pairs(pairs, 0.2, seed)[1]) for seed in range(5)}) > 1


def test_split_keeps_patients_together() -> None:
    pairs = pairs_of(*(f"patient_{p:03}_node_{n}" for p in range(10) for n in range(5)))
    for seed in range(5):
        train, val = split_pairs(pairs, 0.2, seed)
        assert (len(train), len(val)) == (40, 10)
        assert not {pair.name[:11] for pair in train} & {pair.name[:11] for pair in val}
    with pytest.raises(DataError, match="1 slides or patients"):
        split_pairs(pairs[:5], 0.2, 0)


def test_no_split_is_all_training() -> None:
    pairs = pairs_of("a", "b")
    assert split_pairs(pairs, 0, 0) == (pairs, [])
    for part in (1, -0.1, 1.5):
        with pytest.raises(UserError, match="validation split"):
            split_pairs(pairs, part, 0)


def test_patches_of_a_slide_stay_together() -> None:
    """Six slides of five patches each: two slides are for validation."""
    pairs = pairs_of(*(f"tumor_center_na_tumor_{slide:03}_{x}_0" for slide in range(6) for x in range(5)))
    train, val = split_pairs(pairs, 0.34, 0)
    slides = [[slide_of_patch(pair.name) for pair in side] for side in (train, val)]
    assert [len(set(side)) for side in slides] == [4, 2]
    assert not set(slides[0]) & set(slides[1])
    assert train == [pair for pair in pairs if pair not in val]
    assert len(val) == 10


def test_split_keeps_patients_of_tcga_and_of_a_pattern_together() -> None:
    barcodes = pairs_of(*(f"TCGA-A2-{p:04}-01Z-00-DX{n}.AB-{p}{n}" for p in range(10) for n in range(3)))
    own = pairs_of(*(f"P{p}_{n}" for p in range(10) for n in range(3)))
    for pairs, pattern, patient in (
        (barcodes, None, lambda name: name[:12]),
        (own, patient_pattern("(P[0-9]+)_"), lambda name: name[:2]),
    ):
        for seed in range(5):
            train, val = split_pairs(pairs, 0.2, seed, pattern)
            assert (len(train), len(val)) == (24, 6)
            assert not {patient(pair.name) for pair in train} & {patient(pair.name) for pair in val}
    assert any(len({pair.name[:2] for pair in split_pairs(own, 0.2, seed)[1]}) == 6 for seed in range(5))


def test_a_slide_that_does_not_match_is_a_patient_of_its_own() -> None:
    pairs = pairs_of("P1_a", "P1_b", *(f"x{n}" for n in range(8)))
    found = {len(split_pairs(pairs, 0.12, seed, patient_pattern("(P[0-9]+)_"))[1]) for seed in range(30)}
    assert found == {1, 2}  # one of eight, or both of P1
