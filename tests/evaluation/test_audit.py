"""The audit of labels: planted faults are found, known ones only, and a training leaves them out."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from evaluation.audit import main
from prediction.audit import files
from samplers.labels.label import IGNORED, LabelMap, open_label
from samplers.slides.frame import frame_of_file
from tests.helpers.launch import run_python, start_python, wait_for
from tests.helpers.lesion_slides import HEIGHT, WIDTH, asap_xml, level, make_slide
from tests.helpers.tiny_slides import overwrite_tile, write_levels
from tests.helpers.toy_predictors import SPACING, export

Box = tuple[int, int, int, int]  # left, top, right, bottom in level-0 pixels
FIRST, SECOND, EMPTY = (200, 250, 380, 450), (560, 160, 760, 340), (480, 420, 660, 560)
ANNOTATED: dict[str, list[Box]] = {
    "tumor_001": [FIRST],  # the second one is missing
    "tumor_002": [FIRST, (520, 160, 720, 340)],  # the second one is to be moved by 40 pixels, 20 µm
    "tumor_003": [FIRST, SECOND, EMPTY],  # the third one is none
    "tumor_004": [FIRST, SECOND],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of colour: the lesions of the slides are red."""
    return export("lesion", tmp_path_factory.mktemp("models") / "lesion")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides with the same two lesions, one without, and the annotations of ANNOTATED, in a folder with a space."""
    folder = tmp_path_factory.mktemp("some data")
    for name in ("slides", "labels", "masks"):
        (folder / name).mkdir()
    for name, boxes in ANNOTATED.items():
        make_slide(folder / "slides", name, lesions=(FIRST, SECOND), label=None)
        (folder / "labels" / f"{name}.xml").write_text(asap_xml(boxes))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for left, top, right, bottom in boxes:
            mask[top:bottom, left:right] = 255
        write_levels(folder / "masks" / f"{name}_mask.tif", [level(mask, step) for step in (1, 2)], SPACING)
    make_slide(folder / "slides", "normal_001", lesions=(), label=None)
    return folder


def words(model: Path, data: Path, out: Path, *more: object, labels: str = "labels") -> list[str]:
    given = ["--model_path", model, "--slide_path", data / "slides", "--label_path", data / labels]
    return [*map(str, given), "--output", str(out), "--img_size", "256", "--batch_size", "4", *map(str, more)]


def table(out: Path) -> list[dict[str, str]]:
    with (out / "audit.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def audited(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("an audit")
    assert main(words(model, data, out)) == 0
    return out


def test_three_planted_faults_are_found_and_nothing_else(audited):
    rows = table(audited)
    assert [(row["rank"], row["slide"], row["kind"]) for row in rows] == [
        ("1", "tumor_001", "missed"),
        ("2", "tumor_003", "doubtful"),
        ("3", "tumor_002", "shifted"),
    ]
    assert [float(row["score_mm2"]) for row in rows] == sorted(
        (float(row["score_mm2"]) for row in rows), reverse=True
    )
    missed, doubtful, shifted = rows
    assert float(missed["area_mm2"]) == pytest.approx(200 * 180 * (SPACING / 1000) ** 2, rel=0.05)
    for row, (left, top, right, bottom) in ((missed, SECOND), (doubtful, EMPTY)):
        assert left <= int(row["x"]) < right
        assert top <= int(row["y"]) < bottom
    assert (float(shifted["move_x"]), float(shifted["move_y"])) == pytest.approx((40, 0), abs=4)
    assert float(shifted["move_um"]) == pytest.approx(20, abs=2)


def test_the_outlines_are_those_of_what_is_wrong(audited):
    found = json.loads((audited / "qupath" / "tumor_001.geojson").read_text())["features"]
    region = shapely.geometry.shape(found[0]["geometry"])
    truth = shapely.box(*SECOND)
    assert region.intersection(truth).area / region.union(truth).area > 0.95
    assert found[0]["properties"]["classification"]["name"] == "audit_missed"
    moved = json.loads((audited / "qupath" / "tumor_002.geojson").read_text())["features"]
    assert [feature["properties"]["name"] for feature in moved] == ["shifted 1", "suggestion for 1"]
    suggestion = shapely.geometry.shape(moved[1]["geometry"])
    assert suggestion.intersection(truth).area / suggestion.union(truth).area > 0.95
    assert json.loads((audited / "qupath" / "normal_001.geojson").read_text())["features"] == []


def test_the_file_to_correct_has_the_annotations_too(audited, data):
    frame = frame_of_file(data / "slides" / "tumor_003.tif")
    before, after = (
        open_label(folder / "tumor_003.xml", frame, LabelMap())
        for folder in (data / "labels", audited / "asap")
    )
    whole = (0, 0, WIDTH, HEIGHT, 1)
    np.testing.assert_array_equal(after.read_at(*whole), before.read_at(*whole))
    assert after.groups == {"Tumor": 3, "audit_doubtful": 1}
    assert not (audited / "asap" / "normal_001.xml").exists()


def options_of(said: str) -> dict[str, list[str]]:
    """Return the options that the audit says."""
    text = said.partition("train.py ignores these regions with: ")[2].splitlines()[0]
    found: dict[str, list[str]] = {}
    for word in shlex.split(text):
        if word.startswith("--"):
            name = word[2:]
        found.setdefault(name, []).extend([] if word.startswith("--") else [word])
    return found


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_a_training_with_the_options_that_are_said_ignores_the_regions(
    kind, model, data, audited, tmp_path, capsys
):
    capsys.readouterr()
    out = tmp_path / "an audit"
    assert main(words(model, data, out, "--predictions", audited / "predictions", labels=kind)) == 0
    options = options_of(capsys.readouterr().out)
    label_map = LabelMap.parse(options["label_map"])
    folder = Path(*options["label_path"])
    endings = {"labels": ".xml", "masks": "_mask.tif"}
    assert options["label_format"] == [{"labels": "xml", "masks": "tif"}[kind]]
    wrong = {"tumor_001": SECOND, "tumor_003": EMPTY}
    for name in ANNOTATED:
        frame = frame_of_file(data / "slides" / f"{name}.tif")
        before = open_label(data / kind / f"{name}{endings[kind]}", frame, LabelMap())
        after = open_label(folder / f"{name}{endings[kind]}", frame, label_map)
        old, new = (label.read_at(0, 0, WIDTH, HEIGHT, 1) for label in (before, after))
        np.testing.assert_array_equal(new[new != IGNORED], old[new != IGNORED])
        ignored = np.zeros_like(old, bool)
        if name in wrong:
            left, top, right, bottom = wrong[name]
            ignored[top:bottom, left:right] = True
        if name == "tumor_002":
            ignored[160:340, 520:560] = ignored[160:340, 720:760] = True
        agreed = (new == IGNORED) == ignored
        assert agreed.mean() > 0.995, name
        before.close()
        after.close()


def test_a_second_run_compares_nothing_but_a_corrected_slide(
    model, data, audited, tmp_path, capsys, monkeypatch
):
    again, labels = shutil.copytree(audited, tmp_path / "out"), tmp_path / "labels"
    shutil.copytree(data / "labels", labels)
    command = words(model, data, again)
    command[command.index("--label_path") + 1] = str(labels)
    # The labels lie elsewhere now, so all is compared once.
    assert main(command) == 0
    assert table(again) == table(audited)
    compared = []
    real = files.write_picture
    monkeypatch.setattr(
        files, "write_picture", lambda path, *rest: (compared.append(path), real(path, *rest))
    )
    assert main(command) == 0
    assert not compared
    (labels / "tumor_001.xml").write_text(asap_xml([FIRST, SECOND]))
    assert main(command) == 0
    assert len(compared) == 1
    assert [row["slide"] for row in table(again)] == ["tumor_003", "tumor_002"]
    assert "all slides are finished: nothing to do" in capsys.readouterr().out


def test_what_is_not_annotated_or_not_known_is_not_normal(model, data, audited, tmp_path, capsys):
    kept = ("--predictions", audited / "predictions")
    assert main(words(model, data, tmp_path / "a", *kept, "--unannotated", "ignore")) == 0
    assert [row["kind"] for row in table(tmp_path / "a")] == ["doubtful", "shifted"]  # nothing is missed
    partly = tmp_path / "partly.txt"
    partly.write_text("tumor_001\n")
    assert main(words(model, data, tmp_path / "b", *kept, "--partly_annotated", partly)) == 0
    assert [row["slide"] for row in table(tmp_path / "b")] == ["tumor_003", "tumor_002"]
    assert main(words(model, data, tmp_path / "c", *kept, "--label_map", "Tumor:ignore")) == 0
    assert [(row["slide"], row["kind"]) for row in table(tmp_path / "c")] == [("tumor_001", "missed")]
    capsys.readouterr()
    lacking = shutil.copytree(data / "labels", tmp_path / "lacking")
    (lacking / "tumor_004.xml").unlink()
    command = words(model, data, tmp_path / "d", *kept)
    command[command.index("--label_path") + 1] = str(lacking)
    assert main(command) == 0
    assert "1 predictions have no ground truth: tumor_004" in capsys.readouterr().err
    assert "tumor_004" not in {row["slide"] for row in table(tmp_path / "d")}


def test_a_part_of_a_lesion_that_is_not_annotated_is_a_doubtful_outline(model, data, audited, tmp_path):
    labels = shutil.copytree(data / "labels", tmp_path / "labels")
    (labels / "tumor_004.xml").write_text(asap_xml([(200, 250, 290, 450), (560, 160, 860, 340)]))
    command = words(model, data, tmp_path / "out", "--predictions", audited / "predictions")
    command[command.index("--label_path") + 1] = str(labels)
    assert main(command) == 0
    rows = [row for row in table(tmp_path / "out") if row["slide"] == "tumor_004"]
    assert [row["kind"] for row in rows] == ["outline", "outline"]


def test_bad_slides_are_counted_and_bounded(model, data, audited, tmp_path, capsys):
    some = shutil.copytree(data, tmp_path / "some")
    (some / "labels" / "tumor_002.xml").write_text("<no annotations")
    overwrite_tile(some / "slides" / "tumor_003.tif", 70, b"\xff\xd9 broken")
    command = words(model, some, tmp_path / "out", "--max_bad_slides", 2)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "bad slide, left out: tumor_002" in said
    assert "is not valid XML" in said
    assert "2 slides could not be evaluated" in said
    assert [row["slide"] for row in table(tmp_path / "out")] == ["tumor_001"]
    (tmp_path / "out" / "audit.csv").unlink()
    assert main(command[:-2]) == 1
    assert "2 slides are bad, and --max_bad_slides allows 1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "audit.csv").exists()


def test_a_full_disk_is_not_the_fault_of_a_slide(model, data, audited, tmp_path, capsys, monkeypatch):
    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    command = words(model, data, tmp_path, "--predictions", audited / "predictions")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_picture", full)
        assert main(command) == 1
    said = capsys.readouterr().err
    assert "No space left on device. Make room, and the same command goes on" in said
    assert "bad" not in said
    assert main(command) == 0
    assert table(tmp_path) == table(audited)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--confidence", "0.4"], "--confidence 0.4 must be below 1, and at least 0.5"),
        (["--label_path", "/nowhere"], "/nowhere: no such folder"),
        (["--label_path", "utils"], "no masks"),
        (["--label_path", "docs"], "no slide has a label there"),
        (["--label_map", "Tumor"], "'Tumor' is not GROUP:CLASS"),
    ],
)
def test_wrong_options_end_with_2_before_anything_is_predicted(options, said, model, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*words(model, data, out), *options]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_killed_and_started_again_gives_the_same_table(model, data, audited, tmp_path):
    command = ["-m", "evaluation.audit", *words(model, data, tmp_path)]
    process = start_python(command)
    wait_for(lambda: list(tmp_path.glob("slides/*.json")), process)
    process.kill()
    process.communicate()
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == table(audited)


def test_the_picture_shows_the_regions(audited):
    picture = cv2.imread(str(audited / "pictures" / "tumor_001.png"))[:, :, ::-1]
    left, top, right, bottom = SECOND
    around = picture[top - 12 : bottom + 12, left - 12 : right + 12]
    assert (around == files.COLOURS["audit_missed"]).all(axis=2).sum() > 500


@pytest.mark.mpi
def test_two_ranks_find_the_same(model, data, audited, tmp_path):
    done = run_python(["-m", "evaluation.audit", *words(model, data, tmp_path)], ranks=2)
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == table(audited)
