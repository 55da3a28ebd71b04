"""run_folds.sh with stand-ins for the scripts that it starts: which folds it runs, how it ends, how it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.interrupting import interruptible

ROOT = Path(__file__).resolve().parents[1]
STANDS_IN = """#!/bin/sh
echo "{name} $*" >> "$NOTES"
trap 'echo "{name} got USR1" >> "$NOTES"; exit 75' USR1
[ "${{WAITS:-}}" != {name} ] || {{ sleep 20 >/dev/null 2>&1 & wait; }}
exit "${{{code}:-0}}"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    (folder / "utils").mkdir(parents=True)
    shutil.copy(ROOT / "run_folds.sh", folder)
    (folder / "train.py").touch()
    for name, code in (("run_train", "TRAIN"), ("run_predict", "PREDICTS")):
        (folder / f"{name}.sh").write_text(STANDS_IN.format(name=name, code=code))
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text('#!/bin/sh\necho "python $*" >> "$NOTES"\n')
    python.chmod(0o755)
    (folder / "utils/env.sh").write_text(f'VENV="{folder}"\n')
    return folder


def start(clone: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "NOTES": str(clone / "notes"), **environment}
    pipe = subprocess.PIPE
    command = ["sh", str(clone / "run_folds.sh"), *words]
    with interruptible():
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def run(clone: Path, *words: str, **environment: str) -> tuple[int, list[str], str]:
    process = start(clone, *words, **environment)
    _, errors = process.communicate(timeout=60)
    notes = clone / "notes"
    return process.returncode, notes.read_text().splitlines() if notes.exists() else [], errors


def notes_of(clone: Path) -> str:
    return (clone / "notes").read_text() if (clone / "notes").exists() else ""


def test_one_fold_after_the_other_and_then_the_table(clone):
    code, notes, _ = run(
        clone, "--folds", "2", "--log_dir", "cv", "--slide_path", "my slides", PREDICT="--tta"
    )
    words = "--folds 2 --log_dir cv --slide_path my slides"
    assert code == 0
    assert notes == [
        f"run_train {words} --fold 1 --log_dir cv/fold_1",
        "run_predict --model_path cv/fold_1 --slide_path cv/fold_1/splits.json --output cv/fold_1/predictions --tta",
        f"run_train {words} --fold 2 --log_dir cv/fold_2",
        "run_predict --model_path cv/fold_2 --slide_path cv/fold_2/splits.json --output cv/fold_2/predictions --tta",
        "python -m evaluation.folds --log_dir cv",
    ]


def test_a_job_of_an_array_takes_its_fold_and_the_table_may_wait(clone):
    code, notes, _ = run(clone, "--folds=3", "--log_dir=cv", SLURM_ARRAY_TASK_ID="2")
    assert code == 0
    assert [line.split()[0] for line in notes] == ["run_train", "run_predict", "python"]
    assert "--fold 2 --log_dir cv/fold_2" in notes[0]
    assert notes[2] == "python -m evaluation.folds --log_dir cv --if_finished"


def test_an_error_ends_it_but_bad_slides_do_not(clone):
    code, notes, _ = run(clone, "--folds", "2", "--log_dir", "cv", TRAIN="75")
    assert (code, len(notes)) == (75, 1)
    (clone / "notes").unlink()
    code, notes, _ = run(clone, "--folds", "2", "--log_dir", "cv", PREDICTS="1")
    assert (code, len(notes)) == (0, 5)
    (clone / "notes").unlink()
    assert run(clone, "--folds", "2", "--log_dir", "cv", PREDICTS="2")[0] == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signals_reach_the_run(clone, number, code):
    process = start(clone, "--folds", "2", "--log_dir", "cv", WAITS="run_train")
    until = time.monotonic() + 30
    while not (clone / "notes").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert (clone / "notes").read_text().splitlines()[1:] == ["run_train got USR1"]


def test_slurms_signal_in_a_prediction_puts_the_job_back_into_the_queue(clone):
    scontrol = clone / "bin/scontrol"
    scontrol.write_text('#!/bin/sh\necho "scontrol $*" >> "$NOTES"\n')
    scontrol.chmod(0o755)
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    words = ["--folds", "2", "--log_dir", "cv"]
    process = start(clone, *words, WAITS="run_predict", PATH=path, REQUEUE="1", SLURM_JOB_ID="7")
    until = time.monotonic() + 30
    while "run_predict" not in notes_of(clone) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert notes_of(clone).splitlines()[-1] == "scontrol requeue 7"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log_dir", "cv"], "--folds is missing"),
        (["--folds", "3"], "--log_dir is missing"),
        (["--folds", "x", "--log_dir", "cv"], "--folds x is no number from 2 on"),
        (["--folds", "3", "--log_dir", "cv", "--fold", "1"], "--fold is given by this script"),
    ],
)
def test_what_is_missing_is_said(clone, words, said):
    code, notes, errors = run(clone, *words)
    assert (code, notes) == (2, [])
    assert said in errors
