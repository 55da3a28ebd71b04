"""The training loop with a trainer that only takes notes: what it asks for, and at which step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samplers import Batch
from tests.helpers.alike_ranks import AlikeRanks
from train import Loop
from training.metrics import AUC_BINS, Counts
from training.options import build_parser
from training.progress import Position
from training.trainer import StepResult


@dataclass
class Notes:
    """Stands for the trainer and the log. Steps are images of all ranks, as everywhere."""

    num_classes: int = 2
    rates: list[float] = field(default_factory=list)  # of each update
    frozen: list[bool] = field(default_factory=list)
    calibrated: list[int] = field(default_factory=list)  # after so many updates
    logged: list[int] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def train_step(
        self, images: np.ndarray, labels: np.ndarray, rate: float, batch: int, frozen: bool, stop: bool
    ) -> StepResult:
        self.rates.append(rate)
        self.frozen.append(frozen)
        return StepResult(0.5, stop, (np.zeros((2, 2), int), np.zeros((2, AUC_BINS), int), 0.5, len(images)))

    def calibrate(self, images: np.ndarray, part: float) -> None:
        self.calibrated.append(len(self.rates))

    def summed(self, counts: Counts) -> Counts:
        return counts

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        self.logged.append(step)

    def profile(self, *_: object) -> None:
        pass

    progress = now = profile

    def traced(self, *_: object) -> nullcontext[None]:
        return nullcontext()


@dataclass
class Batches:
    """Stands for the training loader."""

    size: int
    wait_seconds: float = 0.0
    dropped: dict[str, Any] = field(default_factory=dict)

    def __iter__(self):
        images = np.zeros((self.size, 8, 8, 3), np.uint8)
        return (Batch(index, images, images[..., 0], []) for index in count())


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trains with these options on so many ranks."""
    monkeypatch.setattr(Loop, "validate", lambda loop: loop.trainer.validated.append(loop.step))
    monkeypatch.setattr(Loop, "save", lambda loop, *_, **__: loop.trainer.saved.append(loop.step))

    def train(words: str, ranks: int = 1) -> Notes:
        options = build_parser().parse_args(words.split())
        notes, loader, config = Notes(), Batches(options.batch_size), SimpleNamespace()
        world = AlikeRanks(size=ranks)
        Loop(options, world, notes, config, [], loader, loader, notes, tmp_path, Position()).train()
        return notes

    return train


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
    words = "--num_steps 40 --batch_size 4 --learning_rate 0.5 --warmup_steps 9 --lr_schedule"
    constant, polynomial = (trained(f"{words} {name}").rates for name in ("constant", "polynomial"))
    assert constant == pytest.approx([0.05, 0.25, 0.45, 0.5, 0.5] * 2)  # again when batch norm is frozen
    assert polynomial[3:5] == pytest.approx([0.5 * (28 / 31) ** 0.9, 0.5 * (24 / 31) ** 0.9])


def test_batch_norm_is_calibrated_once_and_frozen_in_the_last_part_of_the_steps(trained):
    notes = trained("--num_steps 16 --batch_size 2 --freeze_bn 0.25")
    assert notes.frozen == [False] * 6 + [True] * 2
    assert notes.calibrated == [6]
    assert trained("--num_steps 16 --batch_size 2 --freeze_bn 1").calibrated == [0]
    notes = trained("--num_steps 16 --batch_size 2 --freeze_bn 0")
    assert (notes.frozen, notes.calibrated) == ([False] * 8, [])
