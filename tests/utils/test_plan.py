"""The plan: what fits on a cluster, how fast it would be, and what would fit where nothing does."""

from __future__ import annotations

import re

import pytest

from models.from_options import set_precision
from tests.helpers.toy_models import pixelwise
from training import projection
from training.memory import Line
from utils import plan
from utils.cli import EXIT_DONE, EXIT_USAGE
from utils.ranks.network import Network

SECONDS = {"none": 2.0, "blocks": 3.0, "full": 5.0}  # per 1024², half of it from P3
SLOPE = {"none": 6000.0, "blocks": 1000.0, "full": 500.0}  # bytes per pixel


@pytest.fixture
def measured(monkeypatch):
    """Steps that take 1 GB and SLOPE, on strips a tenth more, with one exchange per pass. Return what was measured."""
    calls = []

    def measure(options, steps, ranks_per_patch):
        assert steps == 2
        calls.append((options.recompute, options.fpn_min_level, ranks_per_patch))
        sides = (512, 1024) if ranks_per_patch == 1 else (1024, 2048)
        strips = 1.0 if ranks_per_patch == 1 else 1.1
        seconds = SECONDS[options.recompute] * (0.5 if options.fpn_min_level == 3 else 1)
        forward = 1 if options.recompute == "none" else 2
        exchanges = {"conv": [2048] * forward, "conv_back": [2048]}
        larger = {"seconds": [99.0, seconds], "parameters": 10**6, "exchanges": exchanges}
        return Line(1e9, SLOPE[options.recompute] * options.batch_size * strips, sides, larger)

    monkeypatch.setattr(projection.Line, "measured", measure)
    monkeypatch.setattr(projection, "workers_bytes", lambda options: 0)
    monkeypatch.setattr(
        projection, "network_from_options", lambda options, classes: pixelwise("", None, classes)
    )
    monkeypatch.setattr(
        projection, "sent_forward", lambda model, size, batch, ranks: {"conv": [size * 10**6]}
    )
    yield calls
    set_precision("float32")


def said(capsys, *words: str, code: int = EXIT_DONE) -> str:
    assert plan.main([*words, "--no_cuda", "--mixed_precision", "float32"]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def rows(text: str) -> list[tuple[str, ...]]:
    """Return the cells of the table without its head."""
    return [
        tuple(line.split()) for line in text.splitlines() if re.match(r" *\d+ +(none|blocks|full) ", line)
    ]


def test_the_table_has_what_fits_with_the_fastest_first(measured, capsys):
    words = "--nodes 2 --ranks_per_node 2 --memory 20 --img_size 2048 --latency 0 --gigabit 80"
    text = said(capsys, *words.split())
    assert "A projection, not a measurement, for 4 ranks (2 nodes with 2) of 10.0 GB each" in text
    found = rows(text)
    # 4.2 megapixels in 9.25 GB: without recomputation they fit if four ranks share them.
    kept = [(r, level, ranks) for ranks, r, level, *_ in found]
    assert ("none", "1", "4") in kept
    assert not {("none", "1", "1"), ("none", "1", "2"), ("none", "3", "2")} & set(kept)
    assert len(found) == plan.ROWS
    assert "and 2 slower ones" in text  # of 2 levels, once none and thrice blocks and full
    speeds = [float(row[-1]) for row in found]
    assert speeds == sorted(speeds, reverse=True)
    # 4 · 1024² at 2 s, of which a rank has a quarter; two exchanges of 2 GB at 10 GB/s; the allreduce.
    network = Network(80, 0)
    seconds = 2.0 + network.exchanges(2 * 2048e6, 2, 4) + network.allreduce(4e6, 4)
    memory = 1e9 + 6600 * 2048**2 / 4 + 2048
    assert ("4", "none", "1", f"{memory / 1e9:.1f}", f"{seconds:.3g}", f"{1 / seconds:.3g}") in found


def test_a_step_that_recomputes_exchanges_once_more(measured, capsys):
    words = (
        "--nodes 2 --memory 10 --img_size 2048 --latency 0 --gigabit 80 --ranks_per_patch 2 --fpn_min_level 1"
    )
    found = {row[1]: float(row[-2]) for row in rows(said(capsys, *words.split()))}
    network = Network(80, 0)
    rest = network.exchanges(3 * 2048e6, 3, 2) + network.allreduce(4e6, 2)
    assert found["blocks"] == pytest.approx(2 * 3.0 + rest, rel=1e-2)


def test_the_command_repeats_what_was_given_and_adds_what_was_chosen(measured, capsys):
    words = ["--img_size", "2048", "--batch_size", "2", "--fpn_min_level", "1", "--slide_path", "my slides"]
    text = said(capsys, "--nodes", "2", "--memory", "24", *words)
    line = "--img_size 2048 --batch_size 2 --fpn_min_level 1 --slide_path 'my slides' --no_cuda "
    line += "--mixed_precision float32"
    assert (
        f"sbatch -N 2 --ntasks-per-node=1 run_train.sh {line} --ranks_per_patch 1 --recompute blocks\n"
        in text
    )
    assert {call[1] for call in measured} == {1}
    alone = said(capsys, "--memory", "24", "--img_size", "1024")
    assert "NP=1 sh run_train.sh --img_size 1024" in alone
    assert (
        "--batch_size 1 --ranks_per_patch 1 --recompute none --fpn_min_level 3 --slide_path SLIDES" in alone
    )


def test_the_workers_of_a_rank_take_their_part_of_main_memory(measured, capsys, monkeypatch):
    words = ["--memory", "20", "--img_size", "1024", "--recompute", "blocks", "--fpn_min_level", "1"]
    (alone,) = rows(said(capsys, *words))
    monkeypatch.setattr(projection, "workers_bytes", lambda options: options.sample_processes * 3e9)
    (counted,) = rows(said(capsys, *words, "--sample_processes", "2"))
    assert float(counted[3]) == pytest.approx(float(alone[3]) + 6)
    assert "nothing fits" in said(capsys, *words, "--sample_processes", "7", code=EXIT_USAGE)
    monkeypatch.setattr("utils.ranks.devices.select_devices", lambda *_: ["GPU:0"])  # whose memory is its own
    assert len(rows(said(capsys, *words, "--sample_processes", "7"))) == 1


def test_whole_patches_that_cannot_fit_are_not_measured(measured, capsys):
    said(capsys, "--nodes", "16", "--memory", "24", "--img_size", "16384", "--recompute", "blocks")
    assert measured == [("blocks", 1, 4), ("blocks", 3, 4)]


def test_where_nothing_fits_it_says_what_would(measured, capsys):
    words = ["--nodes", "2", "--memory", "8", "--img_size", "8192"]
    text = said(capsys, *words, code=EXIT_USAGE)
    # 67 megapixels in 6.35 GB at 550 bytes per pixel are six ranks.
    assert "--ranks_per_patch 6 --recompute full --fpn_min_level 1 would: 7.2 GB per rank, on 6 nodes" in text
    assert "more memory, by fewer --ranks_per_node" in said(
        capsys, *words, "--ranks_per_node", "8", code=EXIT_USAGE
    )


def test_what_is_too_large_for_tensorflow_is_left_out(measured, capsys, monkeypatch):
    monkeypatch.setattr(projection, "LIMIT", 3 * 2048**2 // 2)
    text = said(capsys, "--nodes", "2", "--memory", "99", "--img_size", "2048")
    assert {row[0] for row in rows(text)} == {"2"}


def test_what_is_too_large_to_be_measured_is_left_out(measured, capsys, monkeypatch):
    measure = projection.Line.measured

    def killed(options, steps, ranks_per_patch):
        if options.recompute == "none":
            raise MemoryError("a step of 1024² was killed by signal 9")
        return measure(options, steps, ranks_per_patch)

    monkeypatch.setattr(projection.Line, "measured", killed)
    assert plan.main(["--memory", "99", "--img_size", "1024", "--no_cuda"]) == EXIT_DONE
    captured = capsys.readouterr()
    assert {row[1] for row in rows(captured.out)} == {"blocks", "full"}
    assert "killed by signal 9: left out" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--memory 9 --img_size 1000", "--img_size 1000 is no multiple of 128"),
        ("--memory 9 --output_stride 8", "--output_stride is DeepLabV3+'s"),
        ("--memory 9 --nodes 3 --ranks_per_patch 2", "does not divide the number of ranks"),
    ],
)
def test_wrong_options_are_answered_before_anything_is_measured(measured, capsys, words, message):
    assert plan.main(words.split()) == EXIT_USAGE
    assert message in capsys.readouterr().err
    assert not measured
