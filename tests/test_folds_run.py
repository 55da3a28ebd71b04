"""A whole cross-validation with a small network: two folds at a time, killed and stopped, have the table of one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.clone import make_clone
from tests.helpers.launch import TIMEOUT, wait_for
from utils.demo.slides import make_demo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided"),
]
TRAIN = (
    "--data_sampler surf --img_size 128 --batch_size 2 --num_steps 48 --validation_patches 4 --validate_every 6 "
    "--log_every 2 --fpn_min_level 3 --no_cuda --deterministic --folds 3 --log_dir"
)
# One rank with one of two cores, as each of two folds at a time has it: the number of threads changes the last bits.
IN_TURN = {"NP": "1", "HOST_SHARE": "1/2"}
TWO = {"NP": "2", "AT_ONCE": "2"}


def start(clone: Path, data: Path, log_dir: Path, **environment: str) -> subprocess.Popen[str]:
    folders = ["--slide_path", data / "slides", "--label_path", data / "masks"]
    env = {**os.environ, "PREDICT": "--no_cuda", "TF_CPP_MIN_LOG_LEVEL": "2", **environment}
    command = ["sh", clone / "run_folds.sh", *TRAIN.split(), log_dir, *folders]
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, command)], env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def run(clone: Path, data: Path, log_dir: Path, **environment: str) -> tuple[int, str]:
    """Return the exit code and what is on the terminal."""
    process = start(clone, data, log_dir, **environment)
    out, _ = process.communicate(timeout=3 * TIMEOUT)
    return process.returncode, out


def test_the_same_table_some_at_a_time_and_after_kills(tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    clone = make_clone(tmp_path / "clone", "toy_train.py")
    data = make_demo(tmp_path / "demo", train=6, val=0, size=1024) / "training"
    code, out = run(clone, data, tmp_path / "in turn", **IN_TURN)
    assert code == 0, out
    expected = (tmp_path / "in turn/folds.json").read_text()
    assert "| Dice of tumour" in out

    log_dir = tmp_path / "at once"
    code, out = run(clone, data, log_dir, **IN_TURN, TOY_KILLED_AT="12")
    assert f"fold 1 failed with exit code {code}" in out
    assert code > 2
    assert not (log_dir / "fold_2").exists()

    process = start(clone, data, log_dir, **TWO)
    logs = [log_dir / f"output/fold_{fold}.log" for fold in (1, 2)]
    wait_for(lambda: all(log.exists() and "step " in log.read_text() for log in logs), process)
    assert "goes on at step 1" in logs[0].read_text()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75, out
    assert not (log_dir / "fold_3").exists()

    code, out = run(clone, data, log_dir, **TWO)
    assert code == 0, out
    assert (log_dir / "folds.json").read_text() == expected
