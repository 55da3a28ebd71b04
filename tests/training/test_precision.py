"""Which number format a run takes by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import precision
from training.options import build_parser
from utils.ranks.world import World


class Ranks(World):
    """Two ranks, of which the other one's CPU has bfloat16 or not."""

    def __init__(self, other: bool) -> None:
        super().__init__(size=2)
        self.other = other

    def gather(self, value: object) -> list[object]:
        return [value, self.other] if isinstance(value, bool) else [value]

    def broadcast(self, value: object) -> object:
        return value


def settled(
    able: bool, world: World, monkeypatch: pytest.MonkeyPatch, *words: str, on_gpu: bool = False
) -> str:
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: able)
    options = build_parser().parse_args(list(words))
    options.debug = False
    precision.settle_precision(options, on_gpu, world)
    return str(options.mixed_precision)


def test_bfloat16_is_taken_where_all_ranks_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(True, World(), monkeypatch) == "bfloat16"
    assert settled(False, World(), monkeypatch) == "float32"
    assert settled(True, World(), monkeypatch, on_gpu=True) == "float32"
    assert settled(True, Ranks(True), monkeypatch) == "bfloat16"
    assert settled(True, Ranks(False), monkeypatch) == "float32"


def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(False, World(), monkeypatch, "--mixed_precision", "bfloat16") == "bfloat16"
    assert settled(True, World(), monkeypatch, "--mixed_precision", "float32") == "float32"


def test_a_run_that_goes_on_keeps_its_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(json.dumps({"mixed_precision": "float32"}))
    assert settled(True, World(), monkeypatch, "--log_dir", str(tmp_path)) == "float32"
