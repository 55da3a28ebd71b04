"""The table of a cross-validation: from which slides, with which intervals, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation import folds
from evaluation.froc import Detection, SlideResult, TrueLesion
from evaluation.whole_slides import SlideScore, headlines
from tests.helpers.lesion_slides import make_slide
from training.data import split_values
from utils.cli import EXIT_USAGE


def score(name: str, tumour: bool, probability: float, hit: bool = True) -> SlideScore:
    found = Detection(probability, 5, 5)
    lesions = (TrueLesion(1, False, 900.0, 1e5, 5, 5, found if hit else None),) if tumour else ()
    result = SlideResult(name, lesions, () if tumour and hit else (found,))
    confusion = np.array([[80, 5], [5, 10 if tumour else 0]])
    return SlideScore(name, tumour, probability, result, confusion)


SCORES = {
    1: [score("a_1", True, 0.9), score("a_2", False, 0.2), score("b_1", True, 0.6, hit=False)],
    2: [score("c_1", True, 0.8), score("c_2", False, 0.7)],
}
GROUPS = {name: name[0] for some in SCORES.values() for name in (one.name for one in some)}


def test_mean_deviation_and_value_of_all_slides():
    found = folds.summarise(SCORES, GROUPS, 50, 0)["slide_auc"]
    assert found["folds"] == [1.0, 1.0]
    assert (found["mean"], found["deviation"]) == (1.0, 0.0)
    assert found["all"] == headlines([*SCORES[1], *SCORES[2]])["slide_auc"] == pytest.approx(5 / 6)
    found = folds.summarise(SCORES, GROUPS, 50, 0)["froc_corrected"]
    assert found["mean"] == pytest.approx(np.mean(found["folds"]))
    assert found["deviation"] == pytest.approx(np.std(found["folds"], ddof=1))


def test_intervals_draw_patients_with_all_their_slides():
    drawn: list[list[str]] = []
    real = folds.headlines

    def noted(scores):
        drawn.append([one.name for one in scores])
        return real(scores)

    folds.headlines = noted
    try:
        folds.summarise(SCORES, GROUPS, 30, 0)
    finally:
        folds.headlines = real
    for names in drawn[3:]:  # after those of the folds and of all slides
        for patient, slides in (("a", 2), ("b", 1), ("c", 2)):
            mine = [name for name in names if name[0] == patient]
            assert len(mine) % slides == 0
        assert sum(len([n for n in names if n[0] == p]) / k for p, k in (("a", 2), ("b", 1), ("c", 2))) == 3


def test_a_score_that_no_fold_has_is_a_dash():
    normal = {1: [score("a_1", False, 0.2)], 2: [score("b_1", False, 0.3)]}
    summary = folds.summarise(normal, {"a_1": "a", "b_1": "b"}, 10, 0)
    head, rows = folds.rows_of(summary, [1, 2])
    assert rows[0] == ["FROC, official", "–", "–", "–", "–", "–", "–"]
    assert head[:3] == ["score", "fold 1", "fold 2"]
    assert folds.text_of(head, rows).count("\n") == 6


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Two runs with --folds that were not predicted yet."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for fold in (1, 2):
        folder = tmp_path / "cv" / f"fold_{fold}"
        folder.mkdir(parents=True)
        options = {"folds": 2, "fold": fold, "folds_by": "patient", "seed": 0, "label_map": None,
                   "unannotated": "background", "patient_pattern": None}  # fmt: skip
        (folder / "options.json").write_text(json.dumps(options))
        splits = split_values([], [make_slide(slides, f"tumor_00{fold}")])
        (folder / "splits.json").write_text(json.dumps(splits))
    return tmp_path / "cv"


def refused(log_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert folds.main(["--log_dir", str(log_dir)]) == EXIT_USAGE
    return capsys.readouterr().err


def test_what_is_not_finished_is_named_and_waited_for_if_asked(trained, capsys):
    assert "the slides of fold 1 are not predicted" in refused(trained, capsys)
    assert folds.main(["--log_dir", str(trained), "--if_finished"]) == 0
    assert "no table yet: the slides of fold 1" in capsys.readouterr().out
    (trained / "fold_2/options.json").unlink()
    assert "fold 2 of 2 is missing" in refused(trained, capsys)


def test_folds_that_do_not_belong_together_are_refused(trained, capsys):
    path = trained / "fold_2/options.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "seed": 7}))
    assert "different --seed: 0, 7" in refused(trained, capsys)
    path.write_text(json.dumps(options))
    first = (trained / "fold_1/splits.json").read_text()
    (trained / "fold_2/splits.json").write_text(first)
    assert "is in folds 1 and 2" in refused(trained, capsys)
    assert "no runs with --folds" in refused(trained.parent, capsys)
