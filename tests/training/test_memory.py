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

    def measure(options: argparse.Namespace, steps: int = 1, **others: object) -> dict:
        values = {**vars(options), **others}
        calls.append(values)
        slope = {"none": 6.0, "blocks": 1.0, "full": 0.5}[values["recompute"]] / values["ranks_per_patch"]
        return {"peak": 1e9 + slope * 1e3 * values["batch_size"] * values["img_size"] ** 2}

    monkeypatch.setattr(memory, "measure", measure)
    monkeypatch.setattr(memory, "available", lambda on_gpu=False: 8e9)
    monkeypatch.setattr(memory, "workers_bytes", lambda options: 0)
    return calls


def test_the_report_says_what_fits_and_measures_the_step_itself(measured):
    said = memory.report(options_of("--recompute", "blocks", "--batch_size", "1"), ranks=1)
    assert "1.00 GB per megapixel" in said
    assert "fits, extrapolated: 2560" in said  # 6.6 GB at 1 GB per megapixel, in steps of 128
    assert "measured in one step of 2048²: 5.2 GB" in said
    assert measured[-1]["img_size"] == 2048


def test_of_ranks_that_share_a_patch_each_has_its_part(measured):
    words = "--ranks_per_patch", "4", "--recompute", "blocks", "--batch_size", "1"
    said = memory.report(options_of(*words), ranks=2)
    assert "1.00 GB per megapixel that a rank has of a patch with --ranks_per_patch 4" in said
    assert "measured at 1024² and 2048²" in said  # 512² and 1024² for each of four
    assert "a step of 2048² takes 2.0 GB per rank, extrapolated; there are 3.8 GB for each of 2" in said
    assert "fits, extrapolated: 3328" in said  # 2.8 GB for a quarter, in steps of 128
    assert (
        "measured in one step of 2048², of one rank with its strip and its neighbours' rows: 2.0 GB" in said
    )
    with pytest.raises(UserError, match="it does not fit"):
        memory.report(options_of(*words), ranks=4)


def test_ranks_of_a_launcher_take_more_than_a_process_alone(measured, monkeypatch):
    monkeypatch.setattr(memory, "launcher_rank", lambda: (0, 2))
    said = memory.report(options_of("--recompute", "blocks", "--batch_size", "1"), ranks=1)
    assert "there are 7.3 GB for each of 1 on this machine" in said  # of 7.6


def test_the_sampler_workers_of_each_rank_take_their_part(measured, monkeypatch):
    monkeypatch.setattr(memory, "workers_bytes", lambda options: options.sample_processes * 1e9)
    words = "--recompute", "blocks", "--batch_size", "1", "--sample_processes", "2"
    said = memory.report(options_of(*words), ranks=1)
    assert (
        "there are 5.6 GB for each of 1 on this machine, besides 2.0 GB for its sampler workers "
        "(--sample_processes 2)" in said
    )
    with pytest.raises(UserError, match="it does not fit"):
        memory.report(options_of(*words[:-1], "3"), ranks=1)
    assert "workers" not in memory.report(options_of(*words), 1, on_gpu=True)


@pytest.mark.parametrize(
    ("model", "ranks", "sides"),
    [
        ("effdetd0", 1, (512, 1024)),
        ("effdetd0", 2, (768, 1408)),
        ("effdetd0", 5, (1152, 2304)),
        ("deeplab", 3, (887, 1774)),
    ],
)
def test_the_small_patches_have_so_many_pixels_per_rank(model, ranks, sides):
    assert memory._small_sides(model, ranks) == sides


def test_what_does_not_fit_is_an_error_that_names_what_would(measured):
    with pytest.raises(UserError, match=r"With --recompute blocks --batch_size 1 it would: 5\.2 GB"):
        memory.report(options_of(), ranks=1)
    with pytest.raises(UserError, match="--recompute full it would"):
        memory.report(options_of("--recompute", "blocks", "--batch_size", "1"), ranks=2)
    with pytest.raises(UserError, match="take a smaller --img_size or more --ranks"):
        memory.report(options_of(), ranks=8)
    assert all(call["img_size"] <= 1024 for call in measured)


def test_advice_leaves_out_what_is_taken(measured):
    said = memory.advice(options_of())
    assert "--recompute blocks, --batch_size 1, --recompute full, --fpn_min_level 3, more --rank" in said
    said = memory.advice(options_of("--recompute", "full", "--batch_size", "1", "--model", "deeplab"))
    assert "To use less memory: more --ranks_per_patch, a smaller --img_size" in said


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


@pytest.mark.parametrize(
    ("line", "root", "names", "inactive", "total"),
    [
        ("0:", lambda folder: folder, ("memory.max", "memory.current"), 300, 0),
        (
            "4:cpu,memory",
            lambda folder: folder / "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            0,
            300,
        ),
    ],
)
def test_the_memory_left_is_that_of_the_cgroup(line, root, names, inactive, total, tmp_path, monkeypatch):
    limit, usage = names
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OF_PROCESS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(f"12:pids:/elsewhere\n{line}:/slurm/uid_7/job_9/step_0\n")
    job = root(tmp_path) / "slurm/uid_7/job_9"
    (job / "step_0").mkdir(parents=True)
    assert memory.available() > 10**6
    for folder, most, used in (
        (root(tmp_path), "max", 10**12),
        (job, 1000, 700),
        (job / "step_0", "max", 500),
    ):
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"anon 5\ninactive_file {inactive}\ntotal_inactive_file {total}\n"
        )
    assert memory.available() == 600  # of 700 bytes 300 are page cache


@pytest.mark.parametrize("line", ["0:", "4:cpu,memory"])
def test_a_container_that_does_not_see_its_cgroup_has_that_of_its_root(line, tmp_path, monkeypatch):
    folder = tmp_path if line == "0:" else tmp_path / "memory"
    names = (
        ("memory.max", "memory.current")
        if line == "0:"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    folder.mkdir(exist_ok=True)
    for name, value in zip((*names, "memory.stat"), ("1000", "400", "")):
        (folder / name).write_text(value)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OF_PROCESS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(f"{line}:/docker/0123\n")
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
