"""What a run shows on a terminal and to TensorBoard."""

from __future__ import annotations

import io
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.hparams import plugin_data_pb2

import training.run_bar
from training.clocks import Laps, Stopwatch
from training.metrics import Counts
from training.profiler import Profiler
from training.progress import Interval
from training.resume import read_metrics
from training.run_log import RunLog
from training.summary import tensorboard_command


@pytest.fixture
def log_of(tmp_path, monkeypatch):
    def make(columns: int = 0, **more) -> RunLog:
        monkeypatch.setattr(training.run_bar, "terminal_columns", lambda: columns)
        return RunLog(tmp_path, 50_000, **more)

    return make


@pytest.mark.parametrize("columns", [80, 140])
def test_bar_has_all_values_whole(log_of, columns):
    with log_of(columns, step=12_000) as log:
        log.bar.bar.fp = io.StringIO()
        log.bar.bar.start_t -= 20 * 3600
        interval = Interval(Counts(2), 12_000, Stopwatch(100))
        interval.counts.confusion[0, 0] = 1
        log.bar.progress(44_345, 0.53255, interval, 12.0)
        line = str(log.bar.bar)
    assert len(line) <= columns
    assert re.search(r"44345/50000.* \d+:\d\d:\d\d left, 323.4 im.*g.*/s, loss 0.533, mIoU 1.000", line)
    assert re.search(r"wait 12%\]?$", line)


def test_bar_says_what_it_waits_for(log_of):
    with log_of(80) as log:
        log.bar.bar.fp = io.StringIO()
        log.bar.now("validating, 20 patches")
        assert str(log.bar.bar).endswith("left, validating, 20 patches")


def events(folder):
    for path in folder.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            yield from event.summary.value


def test_table_of_runs_has_the_validation_scores_and_the_options(log_of, tmp_path):
    with log_of() as log:
        log.hparams({"adasum": False, "ranks": 2, "model": "effdetd0"})
        log.record(8, "val", {"loss": 0.5, "miou": 0.75, "dice": [0.9, 0.8], "slides": {}})
    values = {value.tag: value for value in events(tmp_path / "tensorboard" / "val")}
    content = values["_hparams_/experiment"].metadata.plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [info.name for info in experiment.hparam_infos] == ["adasum", "ranks", "model"]
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[0] == "curves/miou"
    assert {"curves/miou", "curves/loss", "per_class/dice/class_1"} <= set(metrics) & set(values)


def test_profile_is_where_tensorboard_looks_for_it(log_of, tmp_path, monkeypatch):
    calls = []
    fake = SimpleNamespace(start=calls.append, stop=lambda: calls.append("stop"))
    monkeypatch.setattr(tf.profiler, "experimental", fake)
    with log_of() as log:
        said: list[str] = []
        profiler = Profiler(log.profile_dir, (4, 8), said.append)
        lines = [profiler.before(step, 2) or len(said) for step in range(0, 12, 2)]
    assert lines == [0] * 4 + [1, 1]
    assert f"--logdir '{tmp_path / 'tensorboard'}'" in said[0]
    assert calls == [str(tmp_path / "tensorboard" / "train"), "stop"]


def test_a_profile_that_the_run_ends_is_said_as_well(tmp_path, monkeypatch):
    fake = SimpleNamespace(start=lambda _: None, stop=lambda: None)
    monkeypatch.setattr(tf.profiler, "experimental", fake)
    said: list[str] = []
    profiler = Profiler(tmp_path / "tensorboard" / "train", (4, 800), said.append)
    profiler.before(0, 4)
    assert not profiler.running
    profiler.before(0, 64)  # a batch with steps of the range
    assert profiler.running
    profiler.stop()
    profiler.stop()
    assert len(said) == 1


def test_usual_lap_leaves_out_the_first():
    laps = Laps()
    laps.seconds.extend([60, 1, 2, 1, 2])
    assert laps.usual == 1.5


def test_tensorboard_command_is_that_of_the_environment():
    path = Path(tensorboard_command()).absolute()
    assert path.exists()
    assert path.parent == Path(sys.executable).parent


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the system refuse to write, as it does where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_no_run_and_no_row_of_the_metrics(log_of, tmp_path, capsys):
    panels = [np.random.default_rng(0).integers(0, 256, (40, 160, 3), np.uint8)]
    with log_of() as log:
        log.record(1, "val", {"loss": 1.0})
        with no_file_larger_than(400):
            for step in (2, 3, 4):
                log.record(step, "val", {"loss": 1.0, "words": "w" * 150})
                log.pictures(step, panels)
        log.record(5, "val", {"loss": 5.0})
        log.pictures(5, panels)
        said = capsys.readouterr().out
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    found = [line.split()[1] for line in said.splitlines() if line.startswith("warning: ")]
    assert sorted(found) == [f"{tmp_path}/pictures", "metrics.jsonl"]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["validation_000000005.png"]
    last = max((tmp_path / "tensorboard" / "val").iterdir())  # those of before end in a torn record
    values = [
        value for event in tf.compat.v1.train.summary_iterator(str(last)) for value in event.summary.value
    ]
    assert [float(tf.make_ndarray(v.tensor)) for v in values if v.tag == "curves/loss"] == [5.0]


def test_events_that_cannot_even_be_begun_cost_no_run(log_of, tmp_path, capsys):
    (tmp_path / "tensorboard").touch()  # where the folder would be
    with log_of() as log:
        for step in (1, 2):
            log.record(step, "val", {"loss": 1.0})
            log.pictures(step, [np.zeros((40, 160, 3), np.uint8)])
            log.histograms(step, [])
        log.hparams({"seed": 1})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().out.count("warning: TensorBoard's events cannot be written") == 1
