"""Tracebacks of errors that nobody expected are kept in one file, whichever process meets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from utils.failures import failure_of, write_failures_to


def test_a_worker_process_writes_to_the_file_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILURES_FOLDER", "")  # is put back
    write_failures_to(tmp_path / "run")
    assert failure_of(ZeroDivisionError("here"), "reading of a") == "failed: ZeroDivisionError: here"
    code = "from utils.failures import failure_of; failure_of(KeyError('there'), 'reading of b')"
    subprocess.run([sys.executable, "-c", code], check=True)
    kept = (tmp_path / "run" / "failures.log").read_text()
    assert "reading of a" in kept
    assert "reading of b" in kept
    assert "KeyError: 'there'" in kept


def test_used_up_memory_is_no_failure_of_one_slide() -> None:
    with pytest.raises(MemoryError):
        failure_of(MemoryError(), "reading of a")
