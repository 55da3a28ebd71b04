"""Keeps a run in a tracker such as MLflow as well: its options, its metrics per step, its report and its model card.

Nothing leaves the machine unless an address was given: without one, MLflow's files lie in the log_dir. A tracker is
one row of TRACKERS: how it is opened and which package it needs. Rank 0 alone has one. A thread of its own talks to it,
so that a server that is slow or gone costs the run nothing but its record there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from training.card import CARD, MARKDOWN
from utils.files import write_atomically

NOTE = "tracker.json"  # in the log_dir: which run of the tracker this one is, for when it goes on
EXPERIMENT = "extended-fov-segmentation"
PATIENCE = 60.0  # seconds that the end of a run waits for the tracker to do one thing more
_LONGEST_PARAM, _MOST_PARAMS = 6000, 100  # characters, and number at once, that MLflow takes


class Tracker(Protocol):
    """A run in a tracker, new or gone on with. Its functions may raise whatever they like."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def file(self, path: Path, folder: str) -> None:
        """Keep a copy of a file, in a folder of the run's."""

    def end(self, status: str) -> None:
        """Say that the run has ended: "finished", "stopped" (it may go on) or "failed"."""


class MlflowTracker:
    """A run of MLflow. `address` is its tracking URI; None, and no MLFLOW_TRACKING_URI: files in <log_dir>/mlruns.

    The run that the log_dir's note names is gone on with if it is at the same address.
    """

    STATUS: Mapping[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self, log_dir: Path, address: str | None, options: Mapping[str, Any]) -> None:
        # MLflow reports its use to its makers, and wants a database in place of files, unless it is told otherwise.
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        uri = address_of(log_dir, address)
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        note = log_dir / NOTE
        known = json.loads(note.read_text()) if note.exists() else {}
        if known.get("uri") == uri:
            try:
                self._client.update_run(known["run"], status="RUNNING")
                self._run = str(known["run"])
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it was deleted there
                    raise
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = str(self._client.create_run(experiment, run_name=log_dir.name).info.run_id)
        write_atomically(
            note, lambda path: path.write_text(json.dumps({"uri": uri, "run": self._run}) + "\n")
        )
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in options.items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run, params=params[first : first + _MOST_PARAMS])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(key, v, now, step) for key, v in values.items()])

    def file(self, path: Path, folder: str) -> None:
        self._client.log_artifact(self._run, str(path), folder or None)

    def end(self, status: str) -> None:
        self._client.set_terminated(self._run, self.STATUS[status])


def address_of(log_dir: Path, address: str | None) -> str:
    """Return MLflow's address: the one given, else that of the environment, else files in the log_dir."""
    return address or os.environ.get("MLFLOW_TRACKING_URI") or (log_dir / "mlruns").absolute().as_uri()


class Row(NamedTuple):
    """A tracker: how a run is opened in it, its module, and the package that has it."""

    open: Callable[[Path, str | None, Mapping[str, Any]], Tracker]
    address: Callable[[Path, str | None], str]
    module: str
    package: str


TRACKERS = {"mlflow": Row(MlflowTracker, address_of, "mlflow", "mlflow-skinny==3.17.2")}


def tracker_problems(options: argparse.Namespace) -> Iterator[str]:
    """Yield why the tracker that was asked for cannot be used."""
    if options.tracker is None:
        return
    row = TRACKERS[options.tracker]
    if importlib.util.find_spec(row.module) is None:
        yield (
            f"--tracker {options.tracker} needs a package that is not installed: "
            f"{sys.executable} -m pip install '{row.package}'"
        )
    if options.tracker_uri is not None and urlsplit(options.tracker_uri).password:
        yield (
            "--tracker_uri has a password in it, which the run's options.json would show: give it by "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


class Tracking:
    """Hands to a tracker what the run records, in a thread of its own and in order, for a `with`.

    It never raises: what fails is said once, and the rest is tried all the same. `log_dir` is None on all ranks but
    the first, which then do nothing, as all do without --tracker.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        log_dir: Path | None,
        values: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.finished = False  # else the run has stopped, and may go on
        self._jobs: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._done = 0
        self._thread: threading.Thread | None = None
        if log_dir is None or options.tracker is None:
            return
        self._log_dir, self._say, self._name = log_dir, say, str(options.tracker)
        self._with_model = bool(options.track_model)
        row, uri = TRACKERS[options.tracker], options.tracker_uri
        say(f"{'tracker':9}{options.tracker}, {row.address(log_dir, uri)}")
        from training.dispensable import (
            Dispensable,  # it imports TensorFlow, which the check of the options does not
        )

        self._dispensable = Dispensable(say)
        open_run = partial(row.open, log_dir, uri, values)
        # A daemon: a server that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, args=(open_run,), daemon=True, name="tracker")
        self._put(lambda _: None)  # so that it is opened at once, and not at the first metrics
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        self._put(lambda tracker: tracker.metrics(step, values))

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        status = "failed" if kind is not None else "finished" if self.finished else "stopped"
        for path, folder in outputs(self._log_dir, self._with_model and status == "finished"):
            self._put(lambda tracker, path=path, folder=folder: tracker.file(path, folder))  # type: ignore[misc]
        self._put(lambda tracker: tracker.end(status))
        self._jobs.put(None)
        done = -1
        while self._thread.is_alive() and self._done > done:  # as long as it gets on
            done = self._done
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._say(f"warning: {self._name} does not answer, and lacks the end of this run")

    def _put(self, job: Callable[[Tracker], None]) -> None:
        if self._thread is not None:
            self._jobs.put(job)

    def _work(self, open_run: Callable[[], Tracker]) -> None:
        tracker: Tracker | None = None
        while (job := self._jobs.get()) is not None:
            with self._dispensable(f"{self._name}'s record of this run"):
                tracker = tracker or open_run()
                job(tracker)
            self._done += 1


def outputs(log_dir: Path, model: bool) -> Iterator[tuple[Path, str]]:
    """Yield the files of a run that a tracker keeps, and their folders there: the report, the model card, the model."""
    exported = log_dir / "model"
    chosen = [log_dir / "report.html", exported / CARD, exported / MARKDOWN]
    chosen += sorted(exported.rglob("*")) if model else []
    for path in dict.fromkeys(chosen):
        if path.is_file():
            folder = path.parent.relative_to(log_dir)
            yield path, "" if folder == Path() else str(folder)
