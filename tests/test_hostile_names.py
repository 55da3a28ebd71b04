"""Names in tables and records that try to lead out of the folder of the results: nothing outside is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from CAMELYON17_PREPROCESSING.settings import Folders
from CAMELYON17_PREPROCESSING.store import finished_slides, remove_slides, write_tables
from evaluation.camelyon17 import main
from prediction.store import RECORDS, remove, write_table

NAMES = ["../../precious", "../precious.png", "/{root}/precious", "..", "."]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder for results, two levels below a file that must stay as it is."""
    for folder in (tmp_path, tmp_path / "inner"):
        folder.mkdir(exist_ok=True)
        for ending in ("", ".png", ".json", ".csv", "_prediction.tif"):
            (folder / f"precious{ending}").write_text("precious")
    output = tmp_path / "inner" / "output"
    output.mkdir()
    return output


def outside(output: Path) -> dict[str, bytes]:
    """Return all files that are not in the output, and what is in them."""
    root = output.parents[1]
    files = [path for path in root.rglob("*") if path.is_file() and output not in path.parents]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def names(output: Path) -> list[str]:
    return [name.format(root=output.parents[1]) for name in NAMES]


def test_records_of_predictions(output: Path) -> None:
    before = outside(output)
    (output / RECORDS).mkdir()
    for number, name in enumerate(names(output)):
        (output / RECORDS / f"{number}.json").write_text(json.dumps({"slide": name, "patches": 1}))
    assert write_table(output) == len(NAMES)
    for path in (output / RECORDS).iterdir():
        remove(output, path.stem)
    assert outside(output) == before
    assert sorted(path.name for path in output.iterdir()) == [RECORDS, "slides.csv"]


def test_records_of_patches(output: Path) -> None:
    before, folders = outside(output), Folders(output, output)
    (output / "slides").mkdir()
    for number, name in enumerate(names(output)):
        row = [name, name, name, name, 0, 0, 64, 0.25, 0.5, 0.5]
        record = {"slide": name, "label": name, "discarded": {}, "positive": [row], "negative": []}
        (output / "slides" / f"{number}.json").write_text(json.dumps(record))
    assert write_tables(folders)["positive"] == len(NAMES)
    assert remove_slides(folders, finished_slides(folders)) == len(NAMES)
    assert outside(output) == before
    assert sorted(path.name for path in output.iterdir()) == ["patches.csv", "slides"]


def test_tables_that_are_evaluated(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = output.parents[1] / "stages.csv"
    rows = [f"{name}/patient_00{i}.zip,pN0" for i, name in enumerate(names(output))]
    table.write_text("\n".join(["patient,stage", *rows, "../../precious_node_0.tif,macro"]))
    before = outside(output)
    paths = ["--predictions", table, "--ground_truth", table, "--output", output]
    assert main([*map(str, paths), "--bootstrap", "10"]) == 0, capsys.readouterr().err
    assert outside(output) == before
    assert (output / "camelyon17.json").exists()
