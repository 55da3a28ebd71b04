"""What is known of pairs is not looked for again, by no rank and no later run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from samplers.pairs.known import known_of
from samplers.pairs.pairing import SlidePair
from tests.helpers.groups import Gathering, Member, on_members
from utils.cli import UserError
from utils.ranks.single import ALONE, Ranks


class Finder:
    """Finds the sizes of slides, and remembers where it has looked. Empty slides are bad."""

    def __init__(self) -> None:
        self.looked: list[str] = []

    def __call__(self, pairs: Sequence[SlidePair]) -> dict[SlidePair, int]:
        self.looked += [pair.name for pair in pairs]
        return {pair: pair.slide.stat().st_size if pair.slide.exists() else -1 for pair in pairs}

    def known(self, pairs: list[SlidePair], options: Any = 256, ranks: Ranks = ALONE) -> dict[SlidePair, int]:
        return known_of(
            "size", options, pairs, ranks, self, lambda size: size if size > 0 else None, lambda _, size: size
        )


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[SlidePair]:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "kept"))
    found = [SlidePair(tmp_path / f"{i}.tif", tmp_path / f"{i}.xml") for i in range(5)]
    for pair in found:
        pair.slide.write_bytes(b"x" * (int(pair.name) + 1))
        assert pair.label
        pair.label.touch()
    return found


def looked(pairs: list[SlidePair], options: Any = 256) -> tuple[list[str], list[int]]:
    finder = Finder()
    found = finder.known(pairs, options)
    assert list(found) == pairs
    return finder.looked, list(found.values())


def test_the_next_run_does_not_look_again(pairs: list[SlidePair], tmp_path: Path) -> None:
    assert looked(pairs) == (["0", "1", "2", "3", "4"], [1, 2, 3, 4, 5])
    assert looked(pairs) == ([], [1, 2, 3, 4, 5])
    assert looked(pairs[3:]) == ([], [4, 5])
    assert len(os.listdir(tmp_path / "kept")) == 1


def test_what_has_changed_is_looked_at_again(pairs: list[SlidePair]) -> None:
    looked(pairs)
    pairs[1].slide.write_bytes(b"longer")
    os.utime(pairs[2].label, ns=(1, 1))
    pairs[3] = SlidePair(pairs[3].slide, pairs[3].label, partly_annotated=True)
    assert looked(pairs) == (["1", "2", "3"], [1, 6, 3, 4, 5])
    assert looked(pairs) == ([], [1, 6, 3, 4, 5])
    assert looked(pairs, options=512)[0] == ["0", "1", "2", "3", "4"]


def test_what_is_bad_is_looked_at_again(pairs: list[SlidePair]) -> None:
    pairs[0].slide.write_bytes(b"")
    pairs[1].slide.unlink()
    for _ in range(2):
        assert looked(pairs[:2]) == (["0", "1"], [0, -1])


def test_runs_add_to_what_others_have_found(pairs: list[SlidePair]) -> None:
    looked(pairs[:2])
    assert looked(pairs[1:]) == (["2", "3", "4"], [2, 3, 4, 5])
    assert looked(pairs)[0] == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_work_and_know_the_same(pairs: list[SlidePair], ranks: int) -> None:
    finder = Finder()

    def known(rank: int, gathering: Gathering) -> dict[SlidePair, int]:
        return finder.known(pairs, ranks=Member(rank, ranks, gathering))

    found, _ = on_members(ranks, known)
    assert [list(values.items()) for values in found] == [list(zip(pairs, range(1, 6)))] * ranks
    assert sorted(finder.looked) == ["0", "1", "2", "3", "4"]
    on_members(ranks, known)
    assert len(finder.looked) == 5


def test_an_error_of_one_rank_is_raised_on_all(pairs: list[SlidePair]) -> None:
    def find(mine: Sequence[SlidePair]) -> dict[SlidePair, int]:
        if pairs[1] in mine:
            raise UserError("the disk has burnt")
        return dict.fromkeys(mine, 0)

    def message(rank: int, gathering: Gathering) -> str:
        with pytest.raises(UserError) as caught:
            known_of("size", 0, pairs, Member(rank, 2, gathering), find, lambda v: v, lambda _, v: v)
        return str(caught.value)

    assert on_members(2, message)[0] == ["the disk has burnt"] * 2


def test_nothing_is_kept_if_the_user_says_so(
    pairs: list[SlidePair], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHE_DIR", "")
    for _ in range(2):
        assert looked(pairs)[0] == ["0", "1", "2", "3", "4"]
    assert not (tmp_path / "kept").exists()
