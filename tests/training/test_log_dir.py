"""The folder of a run can be written, and belongs to one run at a time."""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from training.log_dir import check_log_dir, lock_log_dir, lock_run_to_go_on
from utils import lock
from utils.cli import UserError
from utils.lock import LOCK_FILE

HOLD = """
import sys, time
from pathlib import Path
from training.log_dir import lock_log_dir
lock_log_dir(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def released():
    yield
    while lock._locks:
        lock._locks.popitem()[1].close()


def test_a_run_keeps_others_out_until_it_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(
            UserError, match=rf"belongs to a run that goes on \(process {process.pid} on .*\): stop"
        ):
            lock_log_dir(tmp_path)
        process.kill()
    lock_log_dir(tmp_path)
    assert f"process {os.getpid()} on " in (tmp_path / LOCK_FILE).read_text()


def test_a_run_to_go_on_with_is_locked_before_anything_of_it_is_read(tmp_path, monkeypatch):
    options = argparse.Namespace(log_dir=tmp_path, debug=False)
    lock_run_to_go_on(options)  # there is none yet
    assert not (tmp_path / LOCK_FILE).exists()
    (tmp_path / "options.json").write_text("{}")
    lock_run_to_go_on(options)
    assert tmp_path in lock._locks
    monkeypatch.chdir(tmp_path.parent)
    options.log_dir = tmp_path.relative_to(tmp_path.parent)
    lock_run_to_go_on(options)  # the same folder
    assert len(lock._locks) == 1


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock_log_dir(tmp_path)
    assert not lock._locks


def test_looking_whether_a_log_dir_can_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in ("new/er", "there", "there/new"):
        check_log_dir(argparse.Namespace(log_dir=tmp_path / folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_full_disk_is_found_at_once(tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("training.log_dir.tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
        check_log_dir(argparse.Namespace(log_dir=tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
