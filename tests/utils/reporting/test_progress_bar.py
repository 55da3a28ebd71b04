"""Progress where there is a terminal, and where there is none."""

from __future__ import annotations

import pytest

from utils.reporting import progress_bar
from utils.reporting.progress_bar import shown


def test_a_line_for_each_while_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "LINES_EVERY", 0.02)
    for i in shown(range(20), "checking slides", "slide"):
        progress_bar.time.sleep(0.006 if i else 0)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 7  # 0.114 s on a quiet machine
    assert lines[-1].startswith("checking slides: 20 of 20 slides, 00:00 (about 00:00 to go)")
    assert not any("\r" in line for line in lines)


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown((i for i in range(3)), "checking slides", "slide", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_bar, "terminal_columns", lambda: 80)
    assert list(shown([1, 2, 3], "checking slides", "slide")) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "said"), [("0", "checking slides (rank 0 of 2)"), ("1", "")])
def test_rank_0_alone_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, said: str
) -> None:
    monkeypatch.setattr(progress_bar, "LINES_EVERY", 1e-9)
    monkeypatch.setenv("PMI_RANK", rank)
    monkeypatch.setenv("PMI_SIZE", "2")
    assert list(shown([1, 2, 3], "checking slides", "slide")) == [1, 2, 3]
    assert capsys.readouterr().err.startswith(said)
    assert bool(said) == (rank == "0")
