"""The table of models × datasets: its scores are those of the programs, and what the file says wrongly is named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from evaluation import camelyon16, camelyon17, segmentation, table
from evaluation.table_file import folder_name, read_table_file
from evaluation.table_text import latex, markdown
from prediction import store
from tests.helpers.lesion_slides import asap_xml, make_slide
from tests.helpers.toy_predictors import export
from utils.cli import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, UserError

LARGE = ((100, 100, 900, 600),)  # 400 µm long; lesions below 275 are isolated tumour cells
SAMPLES = ("--bootstrap", "40")
FILE = """
[models]
lesion = "models/lesion"
"both_of them" = ["models/red", "models/lesion"]

[datasets.before]
slides = "slides"
labels = "labels"
[datasets.corrected]
slides = "slides"
labels = "corrected"
stages = "stages.csv"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, slides of two patients, two sets of labels and the file of a table."""
    folder = tmp_path_factory.mktemp("a paper")
    for kind in ("red", "lesion"):
        export(kind, folder / "models" / kind)
    for name in ("slides", "labels", "corrected"):
        (folder / name).mkdir()
    for patient in (1, 2):
        for node in range(2):
            name = f"patient_00{patient}_node_{node}"
            lesions = LARGE if patient == 1 else ()
            pair = make_slide(folder / "slides", name, lesions)
            assert pair.label is not None
            shutil.copy(pair.label, folder / "corrected")
            shutil.move(pair.label, folder / "labels")
    path = folder / "labels" / "patient_001_node_0_mask.tif"
    path.unlink()
    path.with_name("patient_001_node_0.xml").write_text(asap_xml(((100, 100, 900, 350),)))
    rows = ["patient,stage", "patient_001.zip,pN1mi", "patient_002.zip,pN0"]
    (folder / "stages.csv").write_text("\n".join(rows) + "\n")
    (folder / "paper.toml").write_text(FILE)
    return folder


def run(root: Path, output: Path, *more: str) -> int:
    return table.main(["--file", str(root / "paper.toml"), "--output", str(output), *SAMPLES, *more])


@pytest.fixture(scope="module")
def made(root: Path) -> Path:
    output = root / "out"
    assert run(root, output, "--", "--img_size", "128", "--no_cuda") == EXIT_DONE
    return output


def cells_of(output: Path) -> dict[tuple[str, str], dict]:
    return {
        (cell["dataset"], cell["model"]): cell for cell in json.loads((output / "table.json").read_text())
    }


@pytest.mark.parametrize(("dataset", "labels"), [("before", "labels"), ("corrected", "corrected")])
def test_scores_are_those_of_the_programs(dataset, labels, root, made, tmp_path):
    predictions = made / "predictions/lesion/before"  # datasets of the same slides share them
    common = [
        "--predictions",
        str(predictions),
        "--ground_truth",
        str(root / labels),
        "--output",
        str(tmp_path),
    ]
    assert camelyon16.main([*common, *SAMPLES]) == segmentation.main(common) == 0
    lesions = json.loads((tmp_path / "camelyon16.json").read_text())
    pixels = json.loads((tmp_path / "segmentation.json").read_text())["slides"]["all slides"]
    found = cells_of(made)[dataset, "lesion"]
    scores = found["scores"]
    assert scores["froc_official"] == lesions["froc_official"]["score"]
    assert scores["froc_corrected"] == lesions["froc_corrected"]["score"]
    assert scores["slide_auc"] == lesions["slide_auc"]["auc"]
    assert (scores["slide_miou"], scores["slide_dice"]) == (pixels["miou"], pixels["dice"][1])
    assert (found["slides"], found["patients"]) == (4, 2)
    if dataset == "corrected":
        truth = ["--ground_truth", str(root / "stages.csv")]
        assert camelyon17.main([*common[:2], *truth, *common[4:], *SAMPLES]) == 0
        stages = json.loads((tmp_path / "camelyon17.json").read_text())
        assert scores["kappa"] == stages["kappa"] is not None
        assert found["intervals"]["kappa"] == stages["interval"]


def test_corrected_labels_stand_beside_those_before_and_give_other_scores(made):
    rows = (made / "table.md").read_text().splitlines()[2:]
    firsts = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows]
    models = ("lesion", "both_of them")
    assert firsts == [[dataset, model] for model in models for dataset in ("before", "corrected")]
    cells = cells_of(made)
    assert (
        cells["before", "lesion"]["scores"]["slide_dice"]
        < cells["corrected", "lesion"]["scores"]["slide_dice"]
    )
    assert (made / "predictions/both_of_them/before/slides.csv").exists()
    assert not (made / "predictions/lesion/corrected").exists()


def test_tex_and_csv_have_the_same_numbers(made):
    tex = (made / "table.tex").read_text()
    assert tex.startswith(r"\begin{tabular}{llr")
    assert r"both\_of them" in tex
    assert r"\toprule" in tex
    rows = list(csv.DictReader((made / "table.csv").open()))
    value = next(row["value"] for row in rows if row["score"] == "slide_miou" and row["model"] == "lesion")
    assert f"{float(value):.3f}" in tex
    assert f"{float(value):.3f}" in (made / "table.md").read_text()


def test_a_second_run_predicts_and_scores_nothing_anew(root, made, monkeypatch):
    before = (made / "table.md").read_text()

    def never(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(table, "_score_slides", never)
    # As predict.py does where nothing is left to be done.
    monkeypatch.setattr(table, "predict", lambda _, __, output, ___: store.write_table(output))
    assert run(root, made) == EXIT_DONE
    assert (made / "table.md").read_text() == before
    with pytest.raises(AssertionError):  # other samples give other intervals
        table.main(["--file", str(root / "paper.toml"), "--output", str(made), "--bootstrap", "41"])


def test_patients_without_a_slide_in_the_dataset_do_not_count_for_its_kappa(
    root, made, tmp_path, monkeypatch
):
    monkeypatch.setattr(table, "predict", lambda *_: None)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    before = cells_of(copy / "out")["corrected", "lesion"]["scores"]["kappa"]
    with (copy / "stages.csv").open("a") as file:
        file.write("patient_077.zip,pN2\npatient_077_node_0.tif,macro\n")
    assert run(copy, copy / "out") == EXIT_DONE
    assert cells_of(copy / "out")["corrected", "lesion"]["scores"]["kappa"] == before


def test_a_slide_that_cannot_be_used_is_named_and_the_others_are_scored(
    root, made, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(table, "predict", lambda *_: None)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = copy / "corrected/patient_002_node_1_mask.tif"
    path.write_bytes(path.read_bytes()[:400])
    assert run(copy, copy / "out") == EXIT_FAILED
    assert "patient_002_node_1 (corrected, lesion)" in capsys.readouterr().err
    cells = cells_of(copy / "out")
    assert cells["corrected", "lesion"]["slides"] == 3
    assert cells["before", "lesion"]["slides"] == 4


def test_the_best_of_a_dataset_is_bold_and_what_no_model_has_is_no_column():
    def cell(value: float | None) -> dict:
        return {"slides": 3, "scores": {"auc": value, "kappa": None}, "intervals": {"auc": (0.1, 0.9)}}

    cells = {("d", "a"): cell(0.5), ("d", "b"): cell(0.25), ("e", "a"): cell(None), ("e", "b"): cell(0.75)}
    order, titles = list(cells), {"auc": "AUC", "kappa": "kappa"}
    lines = markdown(cells, order, titles).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["dataset", "model", "slides", "AUC"]
    shown = [line.split("|")[4].strip() for line in lines[2:]]
    assert shown == [
        "**0.500** (0.100 to 0.900)",
        "0.250 (0.100 to 0.900)",
        "–",
        "**0.750** (0.100 to 0.900)",
    ]
    assert latex(cells, order, titles).count(r"\textbf") == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[models]", "[models", "no TOML"),
        ("[models]", "[model]", "'model', but only models, datasets"),
        ('labels = "labels"', "", "datasets.before has no labels"),
        ('labels = "labels"', "labels = 3", "where a text"),
        ('labels = "labels"', 'labels = ["a", "b"]', "one path"),
        ('labels = "labels"', 'labels = "labels"\nlable_map = ["a:1"]', "'lable_map', but only"),
        ('labels = "labels"', 'labels = "labels"\nlabel_map = ["a"]', "datasets.before: label map"),
        ('labels = "labels"', 'labels = "labels"\npatient_pattern = "x"', "no group in parentheses"),
        ('labels = "labels"', 'labels = "labels"\nunlabelled = "skip"', "not one of error, normal"),
        ("both_of them", "le sion", '"le_sion" and'),
        ('labels = "labels"', 'labels = "nowhere"', "no such folder"),
        ('slides = "slides"', 'slides = "nothing*.tif"', "nothing"),
        ('stages = "stages.csv"', 'stages = "paper.toml"', "paper.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_before_anything_is_predicted(
    old, new, said, root, capsys, monkeypatch
):
    monkeypatch.setattr(table, "predict", lambda *_: pytest.fail("predicted"))
    path = root / "wrong.toml"
    text = FILE.replace(old, new, 1)
    path.write_text(text.replace('lesion = "', 'le_sion = "', 1) if new == "le sion" else text)
    assert table.main(["--file", str(path), "--output", str(root / "never")]) == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_with_2(root, capfd):
    path = root / "other.toml"
    path.write_text(FILE.replace("models/lesion", "models/none"))
    assert table.main(["--file", str(path), "--output", str(root / "other")]) == EXIT_USAGE
    assert "models/none" in capfd.readouterr().err


def test_paths_are_relative_to_the_file_and_names_give_folders(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    models, datasets = read_table_file(root / "paper.toml")
    assert models[0].paths == (str(root / "models/lesion"),)
    assert datasets[0].labels == root / "labels"
    assert [folder_name(name) for name in ("D0, 1024²", "../x", "²")] == ["D0_1024", "x", "_"]
    with pytest.raises(UserError, match="cannot be read"):
        read_table_file(root / "missing.toml")
