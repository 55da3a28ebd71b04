"""Tracebacks of errors that nobody expected are kept in one file, whichever process meets them."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from utils.failures import failure_of, reason_of, write_failures_to
from utils.ranks import killed_rank


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


class ResourceExhaustedError(Exception):
    """Has the name of TensorFlow's, which is the same for the memory and for the disk."""


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "no room"), OSError(errno.EDQUOT, "quota"),
     ResourceExhaustedError("model/variables; No space left on device [Op:SaveV2]")],
)  # fmt: skip
def test_a_full_disk_is_called_a_full_disk(error: Exception) -> None:
    assert killed_rank.text_of(error, "use less memory").startswith("the disk is full: ")
    assert "use less memory" not in killed_rank.text_of(error, "use less memory")
    assert reason_of(error, "a page", (OSError, ResourceExhaustedError)) == str(error)


@pytest.mark.parametrize("error", [MemoryError("9 GiB"), ResourceExhaustedError("OOM when allocating")])
def test_used_up_memory_is_called_that(error: Exception) -> None:
    assert killed_rank.text_of(error, "use less memory") == f"{error}\nuse less memory\n"
    with pytest.raises(type(error)):
        reason_of(error, "a page", (ResourceExhaustedError,))
