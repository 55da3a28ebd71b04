from pathlib import Path

import pytest

from benchmarks.peers import build_parser, main, race, row, side_of
from benchmarks.turns import Side

ANSWERS = """#!/bin/sh
echo 'a library says something'
echo '{"version": "1"}'
while read -r line; do echo '{"seconds": 2.0, "processor_seconds": 3.0}'; done
"""


def side(tmp_path: Path, script: str) -> Side:
    """Return a peer whose interpreter is a shell script, in place of one that has its packages."""
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    return side_of(
        build_parser().parse_args(["--peer=torch", f"--python={python}"]), False, "train", "float32"
    )


def test_both_sides_compute_in_turns(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with side(tmp_path, ANSWERS) as a, side(tmp_path / "b", ANSWERS) as b:
        assert [a.answer()["version"], b.answer()["version"]] == ["1", "1"]
        race(a, b, rounds=3)
    assert a.found == b.found == [{"seconds": 2.0, "processor_seconds": 3.0}] * 3
    assert a.process.returncode == b.process.returncode == 0  # they end when nobody asks any more


def test_a_process_that_fails_ends_the_race(tmp_path: Path) -> None:
    with side(tmp_path, "#!/bin/sh\nexit 3\n") as a, pytest.raises(SystemExit, match="exit code 3"):
        a.answer()


def test_ratios_above_one_say_that_ours_is_faster() -> None:
    ours = [{"seconds": s, "processor_seconds": 2 * s} for s in (1.0, 2.0, 4.0)]
    theirs = [{"seconds": 4.0, "processor_seconds": 4.0} for _ in ours]
    assert row("train", ours, theirs) == (
        "| train | 4.000 | 4.000 | 1.00 (0.50 to 2.00) | 2.000 | 4.000 | 2.00 (1.00 to 4.00) |"
    )


def test_a_peer_that_is_not_known_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["--peer", "nobody"])
