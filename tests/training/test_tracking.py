"""Runs in a tracker: MLflow's own package where it is installed, and trackers that fail."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import training.tracking
from evaluation.whole_slides import HEADLINES
from tests.helpers.launch import run_python
from training.option_checks import parse_options
from training.run_log import RunLog
from training.tracking import NOTE, TRACKERS, Row, Tracking, address_of
from utils.cli import EXIT_USAGE

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None,
    reason=f"MLflow is not installed: .venv/bin/pip install '{TRACKERS['mlflow'].package}'",
)


class Recorder:
    """A tracker that notes what it is told. `broken` are the functions that fail."""

    def __init__(self, log_dir: Path, uri: str | None, options: Mapping[str, Any]) -> None:
        self.told.append(("open", dict(options)))
        self.fail("open")

    told: list[tuple[Any, ...]]
    broken: set[str]
    blocked: threading.Event | None

    def fail(self, what: str) -> None:
        if self.blocked is not None and what == "metrics":
            self.blocked.wait()
        if what in self.broken:
            raise RuntimeError(f"no answer to {what}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("metrics", step, dict(values)))
        self.fail("metrics")

    def file(self, path: Path, folder: str) -> None:
        self.told.append(("file", path.name, folder))
        self.fail("file")

    def end(self, status: str) -> None:
        self.told.append(("end", status))
        self.fail("end")


@pytest.fixture
def recorder(monkeypatch) -> type[Recorder]:
    class Mine(Recorder):
        told: list[tuple[Any, ...]] = []  # noqa: RUF012
        broken: set[str] = set()  # noqa: RUF012
        blocked = None

    monkeypatch.setitem(TRACKERS, "mlflow", Row(Mine, address_of, "json", "json"))
    monkeypatch.setenv("FAILURES_FOLDER", "")
    return Mine


def options(
    tracker: str | None = "mlflow", uri: str | None = None, model: bool = False
) -> argparse.Namespace:
    return argparse.Namespace(tracker=tracker, tracker_uri=uri, track_model=model)


def run_of(log_dir: Path, said: list[str], end: str = "finished", **asked: Any) -> None:
    """Record two steps as a run does, and leave it as `end` says."""
    (log_dir / "model" / "variables").mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "model/card.json", "model/MODEL_CARD.md", "model/variables/index"):
        (log_dir / name).write_text(name)
    with (
        RunLog(log_dir, 100) as log,
        Tracking(options(**asked), log_dir, {"lr": 0.1}, said.append) as tracking,
    ):
        log.tracking = tracking
        log.record(10, "train", {"loss": 0.5})
        log.record(20, "val", {"loss": 0.25, "iou": [0.5, None], "slides": {"a": 1}})
        log.record(
            20,
            "slides",
            {**dict.fromkeys(HEADLINES), "slide_auc": 0.75, "slides": {}, "slides_asked": 3, "seconds": 2.0},
        )
        if end == "failed":
            raise ValueError("a fault")
        tracking.finished = end == "finished"


def test_all_numbers_and_files_of_a_run_reach_the_tracker(recorder, tmp_path):
    said: list[str] = []
    run_of(tmp_path, said)
    assert recorder.told == [
        ("open", {"lr": 0.1}),
        ("metrics", 10, {"train/curves/loss": 0.5}),
        ("metrics", 20, {"val/curves/loss": 0.25, "val/per_class/iou/class_0": 0.5}),
        (
            "metrics",
            20,
            {
                "slides/whole_slides/slide_auc": 0.75,
                "slides/whole_slides/slides_asked": 3.0,
                "slides/speed/seconds": 2.0,
            },
        ),
        ("file", "report.html", ""),
        ("file", "card.json", "model"),
        ("file", "MODEL_CARD.md", "model"),
        ("end", "finished"),
    ]
    assert said == [f"tracker  mlflow, {(tmp_path / 'mlruns').as_uri()}"]


def test_the_model_is_kept_if_it_is_asked_for_and_finished(recorder, tmp_path):
    run_of(tmp_path, [], model=True)
    assert ("file", "index", "model/variables") in recorder.told
    recorder.told.clear()
    run_of(tmp_path, [], "stopped", model=True)
    assert ("file", "index", "model/variables") not in recorder.told
    assert recorder.told[-1] == ("end", "stopped")
    recorder.told.clear()
    with pytest.raises(ValueError, match="a fault"):
        run_of(tmp_path, [], "failed")
    assert recorder.told[-1] == ("end", "failed")


@pytest.mark.parametrize("what", ["open", "metrics", "file", "end"])
def test_a_tracker_that_fails_is_said_once_and_costs_the_run_nothing(what, recorder, tmp_path):
    recorder.broken = {what}
    said: list[str] = []
    run_of(tmp_path, said)
    assert len(said) == 2
    assert "warning: mlflow's record of this run cannot be written, the run goes on without" in said[1]
    assert f"no answer to {what}" in said[1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    if what != "open":  # the rest is tried all the same
        assert {name for name, *_ in recorder.told} == {"open", "metrics", "file", "end"}


def test_a_tracker_that_hangs_neither_stops_the_run_nor_its_end(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(training.tracking, "PATIENCE", 0.1)
    recorder.blocked = threading.Event()
    said: list[str] = []
    run_of(tmp_path, said)
    recorder.blocked.set()
    assert said[1:] == ["warning: mlflow does not answer, and lacks the end of this run"]


@pytest.mark.parametrize("asked", [{"tracker": None}, {}])
def test_other_ranks_and_runs_without_a_tracker_open_none(asked, recorder, tmp_path):
    with Tracking(options(**asked), tmp_path if asked else None, {}, print) as tracking:
        tracking.metrics(1, {"loss": 1.0})
    assert recorder.told == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tracker_uri", "file:///x"], "--tracker_uri goes with --tracker"),
        (["--track_model"], "--track_model goes with --tracker"),
        (["--tracker", "mlflow", "--tracker_uri", "http://me:secret@host"], "has a password in it"),
        (["--tracker", "mlflow"], "pip install 'mlflow-skinny=="),
    ],
)
def test_what_cannot_work_is_said_at_the_start(words, said, tmp_path, monkeypatch, capsys):
    if "http" not in words[-1]:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setitem(TRACKERS, "mlflow", TRACKERS["mlflow"]._replace(module="json"))
    with pytest.raises(SystemExit) as end:
        parse_options(["--slide_path", str(tmp_path), *words])
    assert end.value.code == EXIT_USAGE
    assert said in capsys.readouterr().err


def test_nothing_is_sent_anywhere_unless_an_address_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert address_of(tmp_path, None) == (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of.the.environment")
    assert address_of(tmp_path, None) == "http://of.the.environment"
    assert address_of(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"


@pytest.fixture
def offline(monkeypatch) -> list[Any]:
    """The addresses outside of this machine that somebody has tried to reach."""
    tried: list[Any] = []
    monkeypatch.setattr(training.tracking, "PATIENCE", 600)  # a loaded machine takes minutes to import MLflow

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: connect(None, words))  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tried


@needs_mlflow
def test_mlflow_has_the_run_in_files_and_a_run_that_goes_on_is_the_same_one(tmp_path, offline, monkeypatch):
    log_dir = tmp_path / "a run"
    said: list[str] = []
    run_of(log_dir, said, "stopped")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((log_dir / "mlruns").as_uri())
    number = json.loads((log_dir / NOTE).read_text())["run"]
    assert client.get_run(number).info.status == "KILLED"
    run_of(log_dir, said, model=True)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (number, "FINISHED", "a run")
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics["slides/whole_slides/slide_auc"] == 0.75
    assert [point.step for point in client.get_metric_history(number, "val/curves/loss")] == [20, 20]
    assert {file.path for file in client.list_artifacts(number)} == {"model", "report.html"}
    assert {file.path for file in client.list_artifacts(number, "model/variables")} == {
        "model/variables/index"
    }
    assert len(said) == 2  # nothing but where it is
    assert not offline


@needs_mlflow
def test_a_run_that_was_deleted_in_mlflow_begins_anew_there(tmp_path, offline):
    said: list[str] = []
    run_of(tmp_path, said)
    note = json.loads((tmp_path / NOTE).read_text())
    (tmp_path / NOTE).write_text(json.dumps({**note, "run": "0" * 32}))
    run_of(tmp_path, said)
    assert json.loads((tmp_path / NOTE).read_text())["run"] not in ("0" * 32, note["run"])
    assert len(said) == 2


@needs_mlflow
def test_a_server_that_is_not_there_costs_the_run_nothing(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: list[str] = []
    run_of(tmp_path, said, uri=f"http://127.0.0.1:{port}")
    assert "cannot be written, the run goes on without" in said[1]
    assert len(said) == 2


@needs_mlflow
@pytest.mark.slow
def test_a_whole_run(demo, tmp_path, monkeypatch):
    log_dir = tmp_path / "log"
    words = (
        "--data_sampler surf --img_size 128 --batch_size 2 --num_steps 12 --val_split 0.34 --validation_patches 4 "
        "--log_every 6 --validate_every 12 --fpn_min_level 3 --tracker mlflow --track_model --no_cuda "
        "--validate_slides 1"
    )
    folders = ["--slide_path", demo / "slides", "--label_path", demo / "masks", "--log_dir", log_dir]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = os.pathsep.join(
        filter(None, sys.path)
    )  # so that the package is found where this test has found it
    done = run_python(["tests/helpers/toy_train.py", *folders, *words.split()], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert f"tracker  mlflow, {(log_dir / 'mlruns').as_uri()}" in done.stdout
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((log_dir / "mlruns").as_uri())
    run = client.get_run(json.loads((log_dir / NOTE).read_text())["run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["img_size"] == "128"
    assert {"train/curves/loss", "val/curves/miou", "slides/whole_slides/slide_dice"} <= set(run.data.metrics)
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "model")}
    assert {"model/saved_model.pb", "model/MODEL_CARD.md"} <= artifacts
