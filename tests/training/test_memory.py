"""What a step takes, and what is said of it."""

import argparse

import pytest

import models.from_options
import train
from models.recompute import Recomputed
from tests.helpers.rank_weights import build
from training import memory
from training.options import build_parser
from training.trainer import Trainer
from utils.cli import EXIT_FAILED, EXIT_USAGE, UserError
from utils.ranks.world import World


def options_of(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["--img_size", "2048", *words])


@pytest.fixture
def measured(monkeypatch):
    """A machine of 8 GB, and steps that take 1 GB and 6, 1 or 0.5 GB per megapixel of the batch."""
    calls = []

    def measure(options: argparse.Namespace, **others: object) -> dict:
        values = {**vars(options), **others}
        calls.append(values)
        slope = {"none": 6.0, "blocks": 1.0, "full": 0.5}[values["recompute"]]
        return {"peak": 1e9 + slope * 1e3 * values["batch_size"] * values["img_size"] ** 2}

    monkeypatch.setattr(memory, "measure", measure)
    monkeypatch.setattr(memory, "available", lambda on_gpu=False: 8e9)
    return calls


def test_the_report_says_what_fits_and_measures_the_step_itself(measured):
    said = memory.report(options_of("--recompute", "blocks", "--batch_size", "1"), ranks=1)
    assert "1.00 GB per megapixel" in said
    assert "fits, extrapolated: 2560" in said  # 6.6 GB at 1 GB per megapixel, in steps of 128
    assert "measured in one step of 2048²: 5.2 GB" in said
    assert measured[-1]["img_size"] == 2048


def test_what_does_not_fit_is_an_error_that_names_what_would(measured):
    with pytest.raises(UserError, match=r"With --recompute blocks --batch_size 1 it would: 5\.2 GB"):
        memory.report(options_of(), ranks=1)
    with pytest.raises(UserError, match="--recompute full it would"):
        memory.report(options_of("--recompute", "blocks", "--batch_size", "1"), ranks=2)
    with pytest.raises(UserError, match="take a smaller --img_size"):
        memory.report(options_of(), ranks=8)
    assert all(call["img_size"] <= 1024 for call in measured)


def test_advice_leaves_out_what_is_taken(measured):
    assert "--recompute blocks, --batch_size 1, --recompute full, --fpn_min_level 3" in memory.advice(
        options_of()
    )
    said = memory.advice(options_of("--recompute", "full", "--batch_size", "1", "--model", "deeplab"))
    assert "To use less memory: a smaller --img_size" in said


def test_out_of_memory_ends_with_advice(tmp_path, monkeypatch, capsys):
    def fail(options: argparse.Namespace) -> int:
        raise MemoryError("no 9 GB")

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(train, "run", fail)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as ended:
        train.main(["--slide_path", str(tmp_path)])
    assert ended.value.code == EXIT_FAILED
    said = capsys.readouterr().err
    assert "no 9 GB" in said
    assert "--recompute blocks" in said
    assert "Traceback" not in said


def test_the_memory_left_is_that_of_the_cgroup(tmp_path, monkeypatch):
    limit, usage = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "CGROUPS", ((limit, usage),))
    usage.write_text("400\n")
    limit.write_text("max\n")
    assert memory.available() > 10**6
    limit.write_text("1000\n")
    assert memory.available() == 600


def test_the_report_comes_before_training_and_ends_what_does_not_fit(measured, tmp_path, capsys):
    words = ["--slide_path", str(tmp_path), "--no_cuda", "--no-horovod", "--img_size", "2048"]
    assert train.main([*words, "--memory_report"]) == EXIT_USAGE
    assert "With --recompute blocks --batch_size 1 it would" in capsys.readouterr().err


def test_recompute_is_taken_by_the_trainer(monkeypatch):
    monkeypatch.setattr(models.from_options, "build_model", build)
    for level, kind in (("none", type(lambda: 0)), ("blocks", Recomputed), ("full", Recomputed)):
        trainer = Trainer(build_parser().parse_args(["--recompute", level]), 2, World())
        assert isinstance(trainer.network, kind)
        assert getattr(trainer.network, "sparse", False) == (level == "full")


@pytest.mark.slow
def test_recomputation_takes_less_memory_at_the_same_loss():
    options = options_of("--img_size", "768", "--batch_size", "1")
    plain, blocks = (memory.measure(options, steps=2, recompute=level) for level in ("none", "blocks"))
    assert blocks["peak"] < 0.7 * plain["peak"]
    assert blocks["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert blocks["losses"][1] < blocks["losses"][0]
