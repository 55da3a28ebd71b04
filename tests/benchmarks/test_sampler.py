import json
from pathlib import Path

import pytest

from benchmarks.sampler import main

PEER = """#!/bin/sh
printf '%s' "$2" > "$(dirname "$0")/case.json"
echo '{"version": "1"}'
while read -r line; do echo '{"rate": 10.0, "cpu": 100.0}'; done
"""


def words(demo: Path, python: Path, labels: str) -> list[str]:
    brief = "--img_size 64 --sample_processes 1 --rounds 1 --seconds 0.1"
    paths = [
        "--slide_path",
        str(demo / "slides"),
        "--label_path",
        str(demo / labels),
        "--wholeslidedata",
        str(python),
    ]
    return [*brief.split(), *paths]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A shell script in place of an interpreter that has wholeslidedata."""
    path = tmp_path / "python"
    path.write_text(PEER)
    path.chmod(0o755)
    return path


def test_wholeslidedata_takes_its_turns_on_the_same_slides(demo, python, capsys):
    main([*words(demo, python, "xml"), "--label_format", "xml"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["wholeslidedata_per_second"] == 10
    assert found["cpu_ratio_to_wholeslidedata"] == pytest.approx(1e5 / found["cpu_ms_per_patch"], rel=0.02)
    case = json.loads((python.parent / "case.json").read_text())
    assert [Path(slide).name for slide, _ in case["slides"]] == [f"tumor_00{n}.tif" for n in (1, 2, 3)]
    assert case["img_size"] == 64


def test_wholeslidedata_does_not_read_masks(demo, python):
    with pytest.raises(SystemExit, match="--label_format xml"):
        main(words(demo, python, "masks"))
