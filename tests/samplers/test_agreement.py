"""The ruling of a group: the same whoever computes it, the earliest place first, and an end in every case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samplers import PatchInfo, SamplerError
from samplers.agreement import NO_RULING, Failure, Filled, Look, Place, Ruling, agreed, ruling_after
from samplers.shown import Claim, Shown, Wanted
from samplers.tissue import contrast_sums

FLAT = np.full((32, 64, 3), 128, np.uint8)
ROUGH = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)


def look(
    slot: int, attempt: int = 0, pixels: np.ndarray | None = ROUGH, x: int = 7, tumour: bool = False
) -> Look:
    sums = None if pixels is None else contrast_sums(pixels, 0)
    return Look(Place(slot, attempt), PatchInfo("s", x, 0, 64, tumour), sums)


def report(*looks: Look, failures: tuple[Failure, ...] = ()) -> Filled:
    return Filled([], failures, looks)


def torn(
    slot: int, attempt: int, slide: str = "bad", proposing: bool = False, reason: str = "torn"
) -> Failure:
    return Failure(slide, reason, Place(slot, attempt), proposing)


def test_ranks_that_saw_the_same_agree_and_tumour_on_one_is_tumour() -> None:
    reports = [report(look(0), look(1)), report(look(0, tumour=True), look(1))]
    assert ruling_after(reports, NO_RULING) is None
    assert [patch.tumour for patch in agreed(reports).patches] == [True, False]


def test_a_patch_is_pale_as_a_whole() -> None:
    half = [report(look(0, pixels=FLAT)), report(look(0))]
    assert ruling_after(half, NO_RULING) is None
    pale = [report(look(0), look(1, 2, FLAT))] * 2
    assert ruling_after(pale, NO_RULING) == Ruling(rejected={(1, 2): True})
    taken = [report(look(0), look(1, 11, None))] * 2  # after so many pale ones it is taken as it is
    assert ruling_after(taken, NO_RULING) is None


@pytest.mark.parametrize(
    ("kind", "least", "strips", "fits"),
    [
        ("none", 0.0, [[0, 0], [0, 0]], True),
        ("none", 0.0, [[0, 0], [0, 1]], False),
        ("none", 0.5, [[0, 255], [0, 0]], True),
        ("none", 0.5, [[0, 255], [255, 255]], False),
        (2, 0.0, [[0, 1], [2, 0]], True),
        (2, 0.0, [[0, 1], [1, 0]], False),
    ],
)
def test_a_label_is_judged_as_a_whole(
    kind: int | str, least: float, strips: list[list[int]], fits: bool
) -> None:
    wanted = Wanted(kind, least)
    labels = [np.array([strip], np.uint8) for strip in strips]
    looks = [replace(look(1), claim=Claim(Shown.by(label, wanted), wanted)) for label in labels]
    found = ruling_after([report(look(0), seen) for seen in looks], NO_RULING)
    assert found == (None if fits else Ruling(rejected={(1, 0): False}))


def test_a_failure_of_one_rank_is_one_of_all_and_one_of_all_needs_no_ruling() -> None:
    failing, fine = report(look(0, 1), look(1), failures=(torn(0, 0),)), report(look(0), look(1))
    for reports in ([failing, fine], [fine, failing]):
        assert ruling_after(reports, NO_RULING) == Ruling((torn(0, 0),))
    assert ruling_after([failing, failing], NO_RULING) is None


def test_the_earliest_place_goes_first() -> None:
    early, late = torn(0, 3, "a"), torn(1, 0, "b")
    reports = [report(look(0, 4), look(1, 1), failures=(early, late)), report(look(0, 3), look(1))]
    assert ruling_after(reports, NO_RULING) == Ruling((early,))
    # What all ranks met before it is settled with it, so that none can read it the next time.
    both = torn(0, 1, "c")
    reports = [r._replace(failures=(both, *r.failures)) for r in reports]
    assert ruling_after(reports, NO_RULING) == Ruling((both, early))
    pale = [report(look(0, 0, FLAT), look(1, 1), failures=(late,)), report(look(0, 0, FLAT), look(1))]
    known = Ruling(rejected={(0, 0): True})
    assert ruling_after(pale, NO_RULING) == known
    reports = [report(look(0, 1), look(1, 1), failures=(late,)), report(look(0, 1), look(1))]
    assert ruling_after(reports, known) == Ruling((late,), known.rejected)


def test_one_failure_counts_of_a_place_that_ranks_met_in_different_ways() -> None:
    while_proposed, while_read = torn(0, 0, proposing=True), torn(0, 0, reason="torn elsewhere")
    reports = [report(failures=(while_read,)), report(failures=(while_proposed,))]
    for order in (reports, reports[::-1]):
        assert ruling_after(order, NO_RULING) == Ruling((while_proposed,))


def test_all_slides_that_failed_at_the_start_are_ruled_at_once() -> None:
    a, b = Failure("a", "gone"), Failure("b", "gone")
    ruling = ruling_after([report(failures=(a,)), report(failures=(b,))], NO_RULING)
    assert ruling is not None
    assert ruling.at_start() == [a, b]


def test_ranks_that_drew_different_patches_for_no_reason_are_an_error() -> None:
    with pytest.raises(SamplerError, match=r"drew different ones: s \(7, 0\); s \(8, 0\)"):
        ruling_after([report(look(0)), report(look(0, x=8))], NO_RULING)
    with pytest.raises(SamplerError, match="drew 1, 2"):
        ruling_after([report(look(0)), report(look(0), look(1))], NO_RULING)


def test_a_ruling_reaches_an_end_whatever_fails() -> None:
    """Each rank fails at random places; with every ruling they fail no more there, until all of them agree."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        fails = rng.random((3, 4, 40)) < 0.3
        ruling: Ruling | None = NO_RULING
        for _ in range(200):
            assert ruling is not None
            reports = [run(fails[rank], ruling) for rank in range(3)]
            ruling = ruling_after(reports, ruling)
            if ruling is None:
                break
        expected = [int(np.argmin(fails[:, slot].any(axis=0))) for slot in range(4)]
        assert [look.place.attempt for look in reports[0].looks] == expected


def run(fails: np.ndarray, ruling: Ruling) -> Filled:
    """A rank that cannot read a slide (of a name of its own) where `fails` (slot, attempt) says so."""
    looks, failures = [], []
    for slot in range(fails.shape[0]):
        for attempt in range(fails.shape[1]):
            place = Place(slot, attempt)
            failure = ruling.failure_at(place) or (torn(*place, f"{place}") if fails[slot, attempt] else None)
            if failure is None:
                looks.append(replace(look(slot, attempt), place=place))
                break
            failures.append(failure)
    return report(*looks, failures=tuple(failures))
