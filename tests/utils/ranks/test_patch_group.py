"""Groups of ranks and their strips: every rank and every row once, and messages with the numbers that work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.cli import UserError
from utils.ranks.patch_group import PatchGroup, strip_rows
from utils.ranks.single import Ranks


@given(st.integers(1, 20), st.integers(1, 20))
def test_groups_are_consecutive_ranks_and_each_rank_is_in_one(groups: int, size: int) -> None:
    places = [PatchGroup.of(rank, groups * size, size) for rank in range(groups * size)]
    assert [place.index * size + place.rank for place in places] == list(range(groups * size))
    assert {(place.size, place.count) for place in places} == {(size, groups)}
    assert sum(place.is_first for place in places) == groups
    assert all(place.rank < size and place.index < groups for place in places)


@given(st.integers(16, 4000), st.integers(1, 16))
def test_strips_hold_every_row_once_and_differ_by_a_row_at_most(height: int, ranks: int) -> None:
    rows = strip_rows(height, ranks)
    assert len(rows) == ranks
    assert [row for strip in rows for row in range(*strip)] == list(range(height))
    heights = {strip.height for strip in rows}
    assert heights <= {height // ranks, -(-height // ranks)}


def test_each_rank_knows_its_strip() -> None:
    group = PatchGroup.of(5, 6, 3)
    assert (group.index, group.rank) == (1, 2)
    strip = group.strip(640)
    assert (strip.rows, strip.is_whole) == ((426, 640), False)
    assert strip.strips == ((0, 213), (213, 426), (426, 640))
    assert PatchGroup.of(5, 6).strip(640).is_whole


@pytest.mark.parametrize(
    ("ranks", "per_patch", "words"),
    [
        (6, 4, "start 4 or 8 ranks with the launcher, or take --ranks_per_patch 1 or 2 or 3 or 6"),
        (1, 2, "start 2 ranks with the launcher, or take --ranks_per_patch 1"),
    ],
)
def test_ranks_that_cannot_be_divided_are_refused_with_the_numbers_that_work(
    ranks: int, per_patch: int, words: str
) -> None:
    with pytest.raises(UserError, match=f"--ranks_per_patch {per_patch} does not divide .* {ranks}: {words}"):
        PatchGroup.of(0, ranks, per_patch)


def test_a_rank_that_shares_nothing_is_a_group_of_its_own() -> None:
    ranks = Ranks(2, 5)
    assert ranks.group == PatchGroup(0, 1, 2, 5)
    assert ranks.gather_in_group("mine") == ["mine"]
