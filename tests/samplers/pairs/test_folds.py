"""Folds: a property test that no patient is in two of them, and what they depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.pairs.folds import fold_pairs
from samplers.pairs.names import patient_of
from samplers.pairs.pairing import SlidePair
from samplers.slides.errors import DataError


def slide(patient: int, node: int, labelled: bool) -> SlidePair:
    path = Path(f"center_{patient // 20}/patient_{patient:03d}_node_{node}.tif")
    return SlidePair(path, path.with_suffix(".xml") if labelled else None)


@st.composite
def cohorts(draw: st.DrawFn) -> list[SlidePair]:
    patients = draw(st.lists(st.integers(0, 99), min_size=2, max_size=30, unique=True))
    return [
        slide(patient, node, draw(st.booleans()))
        for patient in patients
        for node in range(draw(st.integers(1, 5)))
    ]


@settings(max_examples=150, deadline=None)
@given(cohorts(), st.integers(2, 10), st.integers(0, 2**31), st.randoms())
def test_no_patient_is_in_two_folds_and_each_slide_is_validated_once(pairs, folds, seed, chance):
    patients = {patient_of(pair.name) for pair in pairs}
    if len(patients) < folds:
        with pytest.raises(DataError, match=f"--folds {folds} needs as many patients"):
            fold_pairs(pairs, folds, 1, seed)
        return
    parts = [fold_pairs(pairs, folds, fold, seed) for fold in range(1, folds + 1)]
    for train, val in parts:
        assert not {patient_of(p.name) for p in train} & {patient_of(p.name) for p in val}
        assert sorted(map(str, [*train, *val])) == sorted(map(str, pairs))
        assert train
        assert val
    validated = [pair for _, val in parts for pair in val]
    assert sorted(map(str, validated)) == sorted(map(str, pairs))
    shuffled = list(pairs)
    chance.shuffle(shuffled)
    for fold, (_, val) in enumerate(parts, 1):
        assert set(fold_pairs(shuffled, folds, fold, seed)[1]) == set(val)


def test_slides_with_and_without_label_are_spread_evenly():
    pairs = [slide(patient, 0, patient < 10) for patient in range(25)]
    for fold in range(1, 6):
        _, val = fold_pairs(pairs, 5, fold, seed=3)
        assert sorted(pair.label is not None for pair in val) == [False] * 3 + [True] * 2


def test_the_seed_decides():
    pairs = [slide(patient, 0, True) for patient in range(20)]
    found = {tuple(pair.name for pair in fold_pairs(pairs, 5, 1, seed)[1]) for seed in range(5)}
    assert len(found) > 1


def test_centres_stay_whole():
    pairs = [slide(patient, node, True) for patient in range(0, 100, 7) for node in range(3)]
    centers = [
        {p.slide.parent.name for p in fold_pairs(pairs, 5, fold, 0, "center")[1]} for fold in range(1, 6)
    ]
    assert sorted(name for some in centers for name in some) == [f"center_{n}" for n in range(5)]
    with pytest.raises(DataError, match="--folds 6 needs as many centres, but the slides are of 5"):
        fold_pairs(pairs, 6, 1, 0, "center")
    with pytest.raises(DataError, match="centre of a slide is unknown"):
        fold_pairs([SlidePair(Path("a.tif"), None)], 2, 1, 0, "center")
