"""The training loop with a trainer that only takes notes: what it asks for, and at which step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samplers import Batch, SamplerError
from tests.helpers.alike_ranks import AlikeRanks
from training.dispensable import Dispensable
from training.loop import MARGIN, Loop
from training.metrics import AUC_BINS
from training.options import build_parser
from training.profiler import Profiler
from training.progress import Progress
from training.run_bar import RunBar
from training.samples import Samples
from training.trainer import StepResult


@dataclass
class Notes:
    """Stands for the trainer, the log and the checkpointer. Steps are images of all ranks, as everywhere."""

    num_classes: int = 2
    gpu: str | None = None
    rates: list[float] = field(default_factory=list)  # of each update
    frozen: list[bool] = field(default_factory=list)
    precise_bn: list[int] = field(default_factory=list)  # number of updates before it
    logged: list[int] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)  # what was saved
    scored: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    fails: bool = False  # the validation does
    looked_for_dead: int = 0  # how often, among the workers of the validation

    def train_step(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        rate: float,
        batch: int,
        frozen: bool,
        stop: bool,
        meanwhile: Callable[[], None],
    ) -> StepResult:
        meanwhile()
        self.rates.append(rate)
        self.frozen.append(frozen)
        return StepResult(0.5, stop, (np.zeros((2, 2), int), np.zeros((2, AUC_BINS), int), 0.5, len(images)))

    def update_precise_bn(self, images: np.ndarray, part: float) -> None:
        self.precise_bn.append(len(self.rates))

    def average_statistics(self) -> None:
        pass

    def description(self) -> dict[str, Any]:
        return {}

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        self.logged.append(step)

    def run(self, step: int) -> float:
        self.validated.append(step)
        if self.fails:
            raise RuntimeError("the validation failed")
        return 0.5

    def say(self, line: str) -> None:
        pass

    def report(self) -> None:
        pass

    def restart_dead_workers(self) -> None:
        self.looked_for_dead += 1

    def save(self, state: dict[str, Any], must: bool) -> None:
        self.saved.append(state["step"])
        self.states.append(state)

    def add_score(self, step: int, values: dict[str, Any]) -> None:
        self.scored.append((step, values))


@dataclass
class Batches:
    """Stands for the training loader."""

    size: int
    wait_seconds: float = 0.0
    dropped: dict[str, Any] = field(default_factory=dict)

    def __iter__(self):
        images = np.zeros((self.size, 8, 8, 3), np.uint8)
        return (Batch(index, images, images[..., 0], []) for index in count())


@dataclass(frozen=True)
class Others(AlikeRanks):
    """Ranks of which the others have these bad slides."""

    bad: dict[str, str] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        return (
            [value, {**self.bad}] if isinstance(value, dict) and "tumor_1" in value else super().gather(value)
        )


def loop_of(words: str, folder: Path, ranks: int = 1) -> tuple[Loop, Notes]:
    """Return a loop with these options on so many ranks, and the notes of what it asked for."""
    options = build_parser().parse_args(words.split())
    notes, world = Notes(), AlikeRanks(size=ranks)
    notes.world, notes.bar = world, RunBar(False, options.num_steps)
    loop = Loop(
        options=options,
        world=world,
        trainer=notes,
        loader=Batches(options.batch_size),
        validator=notes,
        samples=Samples(folder / "samples", world, [], None, Dispensable(print)),
        checkpointer=notes,
        profiler=Profiler(None, None, print),
        log=notes,
        log_dir=folder,
        progress=Progress.begin(2),
    )
    return loop, notes


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the signals to pytest."""
    monkeypatch.setattr("training.loop.Stopping.listen", lambda *_: None)


@pytest.fixture
def trained(tmp_path: Path):
    """Trains with these options on so many ranks."""

    def train(words: str, ranks: int = 1) -> Notes:
        loop, notes = loop_of(words, tmp_path, ranks)
        assert loop.train() is False
        return notes

    return train


def test_a_stop_is_answered_with_a_checkpoint_and_the_validation_that_was_due_comes_later(tmp_path):
    loop, notes = loop_of("--num_steps 24 --batch_size 2 --validate_every 2", tmp_path)
    loop.stopping.signalled = True
    assert loop.train() is True
    assert (notes.saved, notes.validated, loop.progress.validation_due) == ([2], [], True)
    loop, notes = loop_of("--num_steps 24 --batch_size 2 --validate_every 2", tmp_path)
    loop.progress.step, loop.progress.validation_due = 22, True
    assert loop.train() is False
    assert notes.validated == [22, 24]


def test_a_checkpoint_is_written_before_its_validation_and_has_the_score_after(tmp_path):
    words = "--num_steps 24 --batch_size 2 --validate_every 12"
    loop, notes = loop_of(words, tmp_path)
    notes.fails = True
    with pytest.raises(RuntimeError, match="the validation failed"):
        loop.train()
    assert (notes.saved, notes.validated, notes.scored) == ([12], [12], [])
    assert (notes.states[0]["validation_due"], notes.states[0]["best"]) == (True, (-1.0, -1))

    again, notes = loop_of(words, tmp_path)  # what goes on from there validates first
    again.progress, _ = Progress.from_state(
        json.loads(json.dumps(loop.progress.to_state(loop.world) | {"batch_size": 2})),
        loop.options,
        loop.world,
        2,
    )
    assert again.train() is False
    assert (notes.validated, notes.saved) == ([12, 24], [24])
    first, last = (
        {"best": (0.5, 12), "miou": 0.5, "validation_due": False, "validations": n, "slides_due": False}
        for n in (0, 1)
    )
    assert notes.scored == [(12, first), (24, last)]


def test_early_stopping_counts_validations_without_a_better_one(trained):
    words = "--num_steps 24 --batch_size 2 --validate_every 4 --early_stopping 2"
    assert trained(words).validated == [4, 8, 12]  # 0.5 each time: the first is the best


@dataclass
class Slides:
    """Stands for the validator on whole slides: its scores, one after the other; "cut" means cut short."""

    scores: list[float | str | None]
    steps: list[int] = field(default_factory=list)

    def run(self, step: int, seconds_left: float, stop: Callable[[], bool]) -> tuple[float | None, bool]:
        self.steps.append(step)
        score = self.scores.pop(0)
        return (None, True) if score == "cut" else (score, False)


SLIDES = "--num_steps 24 --batch_size 2 --validate_every 12 --validate_slides 2 --validate_slides_every 6"


def test_the_best_checkpoint_is_that_of_the_score_that_was_asked_for(tmp_path):
    for best_by, best in (("froc", (0.8, 12)), ("miou", (0.5, 12))):
        loop, notes = loop_of(f"{SLIDES} --best_by {best_by}", tmp_path)
        loop.slides = Slides([0.6, 0.8, None, 0.7])
        assert loop.train() is False
        assert loop.slides.steps == notes.saved == [6, 12, 18, 24]
        assert notes.validated == [12, 24]
        assert loop.progress.best == best
        assert notes.scored[-1][1]["best"] == best
        assert loop.progress.miou == 0.5  # of the patches, whatever decides


def test_early_stopping_counts_validations_on_whole_slides_if_they_decide(tmp_path):
    loop, _ = loop_of(f"{SLIDES} --best_by auc --early_stopping 2 --num_steps 60", tmp_path)
    loop.slides = Slides([0.6, 0.8, 0.7, 0.7, 0.9])
    assert loop.train() is False
    assert loop.slides.steps == [6, 12, 18, 24]


def test_a_validation_on_whole_slides_that_was_cut_short_stays_due_and_comes_first(tmp_path):
    loop, notes = loop_of(f"{SLIDES} --best_by dice", tmp_path)
    loop.slides = Slides([0.6, "cut", 0.7, "cut"])
    assert loop.train() is False
    assert loop.progress.slides_due  # the last one
    assert notes.scored[-1][1]["best"] == (0.7, 18)
    again, notes = loop_of(f"{SLIDES} --best_by dice", tmp_path)
    state = json.loads(json.dumps(loop.progress.to_state(loop.world) | {"batch_size": 2}))
    again.progress, _ = Progress.from_state(state, again.options, again.world, 2)
    assert again.progress.due == ["slides"]
    again.slides = Slides([0.9])
    assert again.train() is False
    assert (again.slides.steps, again.progress.slides_due, again.progress.best) == ([24], False, (0.9, 24))


def test_a_validation_without_a_score_decides_nothing(tmp_path):
    loop, _ = loop_of(f"{SLIDES} --best_by froc --early_stopping 2 --num_steps 60", tmp_path)
    loop.slides = Slides([0.6, None, None, None, 0.8, None, 0.7, None, 0.6, 0.9])
    assert loop.train() is False
    assert loop.slides.steps == list(range(6, 55, 6))  # the second worse one is the ninth
    assert loop.progress.best == (0.8, 30)


def test_an_update_ends_before_the_time_is_up_and_so_does_precise_batch_norm(tmp_path):
    words = "--num_steps 160 --batch_size 2 --accumulate_steps 4 --freeze_bn 0.5 --time_limit 1:00"
    loop, _ = loop_of(words, tmp_path)
    assert loop.update_seconds() == 0  # not known yet
    loop.laps.seconds.extend([900.0, 10.0, 10.0, 10.0])
    assert loop.update_seconds() == MARGIN * 40
    loop.progress.step = 80 - 8  # batch norm freezes in the update after this one
    assert loop.update_seconds() == MARGIN * (40 + 10 * loop.plan.precise_bn_batches / 2)
    asked = []
    loop.stopping.requested = lambda *seconds: asked.append(seconds)
    loop.progress.step = 0
    loop.train()
    assert asked[1][1] > 0


def test_statistics_are_estimated_before_the_freeze_also_after_a_resume_with_other_ranks(tmp_path):
    """The checkpoint of the update that crosses the freeze is written before they are."""
    words = "--num_steps 64 --batch_size 2 --freeze_bn 0.5 --validate_every 64"
    loop, notes = loop_of(words, tmp_path)
    loop.progress.step = 42  # from three ranks, whose batch came from before step 32
    loop.train()
    assert notes.precise_bn == [0] * loop.plan.precise_bn_batches
    again, notes = loop_of(words, tmp_path)
    state = json.loads(json.dumps(loop.progress.to_state(loop.world) | {"batch_size": 2}))
    again.progress, _ = Progress.from_state(state, again.options, again.world, 2)
    again.progress.step = 44
    again.train()
    assert notes.precise_bn == []


def test_what_was_logged_is_not_in_what_a_rescue_writes(tmp_path):
    loop, _ = loop_of("--num_steps 8 --batch_size 2 --log_every 2 --validate_every 100", tmp_path, ranks=2)
    loop.train()
    assert loop.rescue.kept.interval.start_step == 8


def test_bad_slides_of_all_ranks_together_end_the_run(tmp_path):
    loop, _ = loop_of("--num_steps 8 --batch_size 2 --log_every 2", tmp_path, ranks=2)
    loop.loader.dropped = {"tumor_1": ("torn", 3), "tumor_2": ("gone", 4)}
    loop.bad_slides_allowed = 2
    loop.train()
    loop, _ = loop_of("--num_steps 8 --batch_size 2 --log_every 2", tmp_path, ranks=2)
    loop.loader.dropped = {"tumor_1": ("torn", 3)}
    loop.world = Others(size=2, bad={"tumor_2": "gone", "tumor_3": "gone"})
    loop.bad_slides_allowed = 2
    with pytest.raises(
        SamplerError, match=r"3 slides could not be read, 2 are allowed .*\n  tumor_1: torn\n"
    ):
        loop.train()


def test_a_stop_is_not_kept_waiting_by_whole_slides(tmp_path):
    loop, notes = loop_of(
        "--num_steps 24 --batch_size 2 --validate_slides 1 --validate_slides_every 2", tmp_path
    )
    loop.slides = Slides([])
    loop.stopping.signalled = True
    assert loop.train() is True
    assert (notes.saved, loop.progress.slides_due) == ([2], True)
    assert notes.states[0]["slides_due"]


@pytest.mark.parametrize(
    ("words", "ranks", "updates"),
    [
        ("--num_steps 24 --batch_size 2", 1, 12),
        ("--num_steps 24 --batch_size 4", 1, 6),
        ("--num_steps 48 --batch_size 4", 1, 12),
        ("--num_steps 24 --batch_size 4", 3, 2),
        ("--num_steps 25 --batch_size 4", 3, 3),
    ],
)
def test_a_step_is_an_image_of_any_rank(trained, words, ranks, updates):
    notes = trained(words, ranks)
    assert len(notes.rates) == updates
    assert notes.validated == notes.saved == notes.logged == [updates * ranks * int(words.split()[-1])]


def test_logs_validations_and_checkpoints_come_when_they_are_due(trained):
    notes = trained("--num_steps 24 --batch_size 2 --log_every 7 --validate_every 12 --checkpoint_every 10")
    assert notes.logged == [8, 14, 22, 24]
    assert notes.validated == [12, 24]
    assert notes.saved == [10, 12, 20, 24]
    assert notes.looked_for_dead == 12  # with each update
    for size, ranks in ((4, 1), (2, 2)):
        assert trained(f"--num_steps 24 --batch_size {size} --validate_every 7", ranks).saved == [8, 16, 24]


def test_nothing_comes_within_an_update_of_several_batches(trained):
    notes = trained("--num_steps 16 --batch_size 2 --accumulate_steps 3 --log_every 5 --validate_every 5")
    assert notes.logged == notes.validated == notes.saved == [6, 12, 18]


@pytest.mark.parametrize(
    ("words", "times"),
    [("", 4), ("--lr_scaling sqrt", 2), ("--lr_scaling none", 1), ("--adasum --lr_scaling linear", 1)],
)
def test_the_learning_rate_is_multiplied_as_asked_but_not_with_adasum(trained, words, times):
    more = "--num_steps 40 --batch_size 2 --learning_rate 0.5 --warmup_steps 0 --lr_schedule constant"
    assert trained(f"{more} {words}", ranks=4).rates == [0.5 * times] * 5


def test_the_learning_rate_is_warmed_up_and_then_scheduled(trained):
    words = "--num_steps 40 --batch_size 4 --learning_rate 0.5 --freeze_bn 0.5 --warmup_steps 9 --lr_schedule"
    constant, polynomial = (trained(f"{words} {name}").rates for name in ("constant", "polynomial"))
    assert constant == pytest.approx([0.05, 0.25, 0.45, 0.5, 0.5] * 2)  # again when batch norm is frozen
    assert polynomial[3:5] == pytest.approx([0.5 * (28 / 31) ** 0.9, 0.5 * (24 / 31) ** 0.9])


def test_batch_norm_is_computed_anew_once_and_frozen_in_the_last_part_of_the_steps(trained):
    notes = trained("--num_steps 16 --batch_size 2 --freeze_bn 0.25")
    assert notes.frozen == [False] * 6 + [True] * 2
    assert notes.precise_bn == [6]
    assert trained("--num_steps 16 --batch_size 2 --freeze_bn 1").precise_bn == [0]
    notes = trained("--num_steps 16 --batch_size 2 --freeze_bn 0")
    assert (notes.frozen, notes.precise_bn) == ([False] * 8, [])
