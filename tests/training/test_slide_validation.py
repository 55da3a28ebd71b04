"""Validation on whole slides with a model of a pixel's colour: scores, and what may go wrong on one of the ranks."""

from __future__ import annotations

import argparse
import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import training.slide_validation
from evaluation import camelyon16, segmentation
from prediction.raster import Raster
from samplers.labels.label_map import LabelMap
from samplers.pairs.pairing import SlidePair
from tests.helpers.lesion_slides import level
from tests.helpers.thread_ranks import on_ranks
from tests.helpers.tiny_slides import write_levels
from tests.helpers.toy_predictors import SPACING, slide_with
from training.chosen_slides import choose_slides
from training.options import build_parser
from training.resume import read_metrics
from training.run_log import RunLog
from training.slide_validation import FOLDER, SlideValidator
from training.trained_model import NO_TIME
from utils.cli import UserError
from utils.ranks.activity import Activity
from utils.ranks.single import ALONE, Ranks
from utils.ranks.stalls import Stalls

SIZE = 1700, 1400  # pixels; a lesion of more than 1,132 is larger than isolated tumour cells


class Red:
    """Stands for `TrainedModel`: tumour is where red is 255."""

    deviates = False

    def __init__(self, trainer: SimpleNamespace, size: int) -> None:
        self.planes, self.last, self.before = 1, 0.0, lambda: None
        self.world, self.batches, self.seconds = trainer.world, 0, trainer.seconds

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.before()
        self.batches += 1
        time.sleep(self.seconds)
        self.last = time.monotonic()
        return np.clip((images[:, None, :, :, 0].astype(np.float32) - 245) / 10, 0, 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[SlidePair]:
    """One with a lesion that is found, one that is missed, and ITC; one with ITC; a normal one with something red."""
    folder = tmp_path_factory.mktemp("whole slides")
    (folder / "masks").mkdir()
    found = []
    for name, seen, missed in (
        ("tumor_001", [(60, 100, 1260, 500), (1580, 600, 1650, 780)], [(60, 900, 1260, 1300)]),
        ("tumor_002", [(500, 500, 900, 700)], []),
        ("normal_001", [(300, 300, 500, 500)], []),
    ):
        red, mask = (np.zeros(SIZE[::-1], np.uint8) for _ in range(2))
        for left, top, right, bottom in seen:
            red[top:bottom, left:right] = 1
        for left, top, right, bottom in seen + missed:
            mask[top:bottom, left:right] = 255
        slide, label = slide_with(folder / f"{name}.tif", red > 0), None
        if not name.startswith("normal"):
            levels = [level(mask, step) for step in (1, 2)]
            label = write_levels(folder / "masks" / f"{name}_mask.tif", levels, SPACING)
        found.append(SlidePair(slide, label))
    return found


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.slide_validation, "TrainedModel", Red)


def options_of(words: str = "") -> argparse.Namespace:
    options = build_parser().parse_args(f"--img_size 256 --batch_size 2 --best_by dice {words}".split())
    options.resolution = None
    return options


def validator(
    pairs: list[SlidePair], log_dir: Path, words: str = "", world: Ranks = ALONE, seconds: float = 0.0
) -> SlideValidator:
    trainer = SimpleNamespace(world=world, num_classes=2, seconds=seconds, average_statistics=lambda: None)
    log = RunLog(log_dir if world.is_first else None, 100)
    return SlideValidator(
        options_of(words), trainer, pairs, LabelMap(), [["other"], ["tumour"]], log, log_dir
    )


def never() -> bool:
    return False


def only_row(log_dir: Path) -> dict:
    (row,) = read_metrics(log_dir)
    return row


def test_the_scores_are_those_of_the_evaluation_programs(pairs, tmp_path):
    score, cut_short = validator(pairs, tmp_path).run(12, 1e9, never)
    row, folder = only_row(tmp_path), tmp_path / FOLDER
    assert (row["step"], row["split"], row["slides_asked"], row["left_out"]) == (12, "slides", 3, {})
    assert (score, cut_short) == (row["slide_dice"], False)

    truth = ["--ground_truth", str(pairs[0].label.parent)]
    assert camelyon16.main(["--predictions", str(folder), *truth, "--bootstrap", "0"]) == 0
    lesions = json.loads((folder / "lesions/scores/camelyon16.json").read_text())
    assert row["froc_official"] == lesions["froc_official"]["score"]
    assert row["froc_corrected"] == lesions["froc_corrected"]["score"]
    assert row["slide_auc"] == lesions["slide_auc"]["auc"]
    assert segmentation.main(["--predictions", str(folder), *truth]) == 0
    pixels = json.loads((folder / "scores/segmentation.json").read_text())["slides"]
    assert row["slide_miou"] == pixels["all slides"]["miou"]
    assert row["slide_dice"] == pixels["all slides"]["dice"][1]
    for name, values in row["slides"].items():
        assert values["miou"] == pixels[name]["miou"], name


def test_lesions_by_size_and_false_positives(pairs, tmp_path):
    validator(pairs, tmp_path).run(12, 1e9, never)
    row = only_row(tmp_path)
    assert row["lesions"] == {"itc": 2, "micro": 2, "macro": 0}
    assert row["sensitivity"] == {"itc": 1.0, "micro": 0.5, "macro": None}
    assert row["false_positives_per_normal_slide"] == 1
    assert row["slides"]["tumor_001"]["lesions_found"] == 1
    assert row["slides"]["tumor_001"]["lesions"] == 2
    picture = cv2.imread(str(tmp_path / "pictures/slides/tumor_001.jpg"))
    assert max(picture.shape) <= 1024


def test_a_bad_slide_is_named_and_the_others_have_scores(pairs, tmp_path, capsys):
    bad = tmp_path / "torn.tif"
    bad.write_bytes(pairs[0].slide.read_bytes()[:5000])
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    score, cut_short = validator([*pairs, SlidePair(bad, None)], log_dir).run(12, 1e9, never)
    row = only_row(log_dir)
    assert (list(row["left_out"]), len(row["slides"]), cut_short) == (["torn"], 3, False)
    assert score == row["slide_dice"]  # the slide is bad the next time as well
    assert "torn is left out" in capsys.readouterr().out


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_scores_and_not_the_run(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Raster, "_write", full_disk)
    assert validator(pairs, tmp_path).run(12, 1e9, never) == (None, False)
    row = only_row(tmp_path)
    assert (row["slides"], row["slide_dice"]) == ({}, None)
    assert all("No space left on device" in reason for reason in row["left_out"].values())


def test_a_folder_that_cannot_be_made_costs_the_scores_and_not_the_run(pairs, tmp_path):
    (tmp_path / FOLDER).write_text("a file")
    assert validator(pairs, tmp_path).run(12, 1e9, never) == (None, False)
    assert "cannot be written" in only_row(tmp_path)["left_out"]["tumor_001"]


def on_two(
    pairs: list[SlidePair], log_dir: Path, **faults: Callable[[], None]
) -> list[tuple[float | None, bool]]:
    """Validate on two ranks, of which rank 1 calls a fault before each batch."""

    def run(world: Ranks) -> tuple[float | None, bool]:
        one = validator(pairs, log_dir, world=world)
        one.model = Red(one.trainer, 256)
        fault = faults.get("fault")
        if world.rank == 1 and fault is not None:
            real = one.model.__class__.__call__

            class Faulty(Red):
                def __call__(self, images: np.ndarray) -> np.ndarray:
                    fault()
                    return real(self, images)

            one.model = Faulty(one.trainer, 256)
        return one.run(12, 1e9, never)

    return on_ranks(2, run)


def test_two_ranks_share_the_slides_and_have_the_scores_of_one(pairs, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    for folder in (alone, two):
        folder.mkdir()
    validator(pairs, alone).run(12, 1e9, never)
    found = on_two(pairs, two)
    assert found[0] == found[1]
    rows = [{**only_row(folder), "seconds": 0} for folder in (alone, two)]
    assert rows[0] == rows[1]


def test_an_error_on_one_rank_lets_no_other_rank_wait(pairs, tmp_path):
    def fail() -> None:
        raise RuntimeError("a fault of the program")

    assert on_two(pairs, tmp_path, fault=fail) == [(None, False)] * 2
    assert set(only_row(tmp_path)["left_out"]) == {"tumor_001", "tumor_002", "normal_001"}


def test_a_full_disk_of_one_rank_lets_no_other_rank_wait(pairs, tmp_path):
    from utils.files import OutputError

    def fail() -> None:
        raise OutputError("the disk is full")

    assert on_two(pairs, tmp_path, fault=fail) == [(None, False)] * 2
    assert set(only_row(tmp_path)["left_out"].values()) == {"the disk is full"}


def test_a_folder_that_only_one_rank_sees_is_used_by_that_rank_alone(pairs, tmp_path):
    def run(world: Ranks) -> tuple[float | None, bool]:
        folder = tmp_path if world.is_first else tmp_path / "another node"
        return validator(pairs, folder, world=world).run(12, 1e9, never)

    found = on_ranks(2, run)
    assert found[0] == found[1]
    assert len(only_row(tmp_path)["slides"]) == 3


def test_the_time_is_kept_and_what_does_not_fit_is_named(pairs, tmp_path):
    one = validator(pairs, tmp_path, "--validate_slides_minutes 0.05", seconds=0.05)
    start = time.monotonic()
    assert one.run(12, 1e9, never) == (None, False)  # it could not be compared with one of all slides
    seconds = time.monotonic() - start
    row = only_row(tmp_path)
    assert seconds < 6
    assert NO_TIME in row["left_out"].values()
    assert len(row["slides"]) + len(row["left_out"]) == 3


def test_a_slide_that_takes_longer_than_there_is_time_is_not_begun_again(pairs, tmp_path, capsys):
    def run(world: Ranks) -> list[int]:
        one, batches = (
            validator(pairs[:1], tmp_path, "--validate_slides_minutes 0.03", world, seconds=0.3),
            [],
        )
        for step in (12, 24):
            assert one.run(step, 1e9, never) == (None, False)
            batches.append(one.model.batches)
        return batches

    for first, second in on_ranks(2, run):
        assert first == second > 0
    assert [row["left_out"] for row in read_metrics(tmp_path)] == [{"tumor_001": NO_TIME}] * 2
    said = capsys.readouterr().out
    assert said.count("tumor_001 is left out: it alone takes about 0.") == 2
    assert "more than --validate_slides_minutes leaves it, and is not begun again" in said


@pytest.mark.parametrize(("seconds_left", "stops"), [(0.0, False), (-5.0, False), (1e9, True)])
def test_a_run_that_has_to_stop_leaves_no_scores(pairs, tmp_path, seconds_left, stops):
    assert validator(pairs, tmp_path).run(12, seconds_left, lambda: stops) == (None, True)
    assert read_metrics(tmp_path) == []


def test_ranks_with_other_times_left_decide_alike(pairs, tmp_path):
    def run(world: Ranks) -> tuple[float | None, bool]:
        return validator(pairs, tmp_path, world=world).run(12, 1e9 if world.is_first else -5.0, never)

    assert on_ranks(2, run) == [(None, True)] * 2  # else one of them would go on alone, to the next exchange


def test_no_lesion_to_be_found_is_no_score(pairs, tmp_path, capsys):
    one = validator(pairs[1:], tmp_path, "--best_by froc")
    score, cut_short = one.run(12, 1e9, never)
    assert (score, cut_short) == (None, False)
    said = capsys.readouterr().out
    assert "--best_by froc decides nothing here, as these slides have none: no lesion is larger" in said
    one._say_undecided(False)
    assert capsys.readouterr().out == ""  # once
    assert only_row(tmp_path)["slide_auc"] is not None


def test_slides_that_take_long_are_no_stall():
    """Rank 0 waits while rank 1 predicts for longer than the limit."""
    stalls = Stalls(["a", "b"], limit=100.0)
    stalls.trains = True
    working, waiting = Activity(), Activity()
    for activity in (working, waiting):
        activity.begin("validating on whole slides")
    with waiting.waiting():
        start = waiting.now.since
        for seconds in range(0, 500, 5):
            working.goes_on()
            for rank, activity in enumerate((waiting, working)):
                since = start + seconds if rank else start
                stalls.hear(rank, activity.now._replace(since=since), start + seconds)
            assert stalls.notice(start + seconds) == ""
            assert stalls.reason_to_end(start + seconds) == ""
        assert working.now.since > start
        assert stalls.reason_to_end(start + 700)  # but one that stands still is


def chosen(pairs: list[SlidePair], words: str, seed: int = 0) -> list[str]:
    options = options_of(f"--validate_slides {words} --seed {seed}")
    return [pair.name for pair in choose_slides(options, pairs)]


def test_a_number_takes_slides_with_and_without_label_in_turn():
    pairs = [SlidePair(Path(f"tumor_{n}.tif"), Path(f"tumor_{n}.xml")) for n in range(6)]
    pairs += [SlidePair(Path(f"normal_{n}.tif"), None) for n in range(2)]
    assert [name.partition("_")[0] for name in chosen(pairs, "6")] == ["tumor", "normal"] * 2 + ["tumor"] * 2
    assert set(chosen(pairs, "99")) == {pair.name for pair in pairs}
    assert chosen(pairs, "3") == chosen(pairs[::-1][::-1], "3")
    assert len({tuple(chosen(pairs, "3", seed)) for seed in range(9)}) > 1
    assert chosen(pairs, "normal_1 tumor_3 normal_1") == ["normal_1", "tumor_3"]
    assert choose_slides(build_parser().parse_args([]), pairs) == []


def test_names_that_are_not_there_and_patches_are_refused():
    pair = SlidePair(Path("tumor_1.tif"), None)
    with pytest.raises(UserError, match=r"tumor_2 is not among .* which are tumor_1"):
        chosen([pair], "tumor_1 tumor_2")
    patch = SlidePair(Path("tumor_center_na_tumor_001_10_20.png"), None)
    with pytest.raises(UserError, match="takes whole slides"):
        chosen([patch], "1")
