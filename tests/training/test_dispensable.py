"""What a run can do without never ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from samplers.slides.errors import ReadError
from training.dispensable import Dispensable
from utils.failures import write_failures_to

FULL = tf.errors.ResourceExhaustedError(None, None, "tb/events; No space left on device")


def test_each_thing_that_fails_is_said_once_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILURES_FOLDER", "")  # is put back
    write_failures_to(tmp_path)
    said: list[str] = []
    dispensable = Dispensable(said.append)
    for what, error in (
        ("page", OSError("gone")), ("page", OSError("gone")), ("slide", ReadError("torn")), ("events", FULL)
    ):  # fmt: skip
        with dispensable(what):
            raise error
    assert [line.partition(" cannot be written, the run goes on without: ")[2] for line in said] == [
        "gone", "torn", "tb/events; No space left on device"
    ]  # fmt: skip
    assert not (tmp_path / "failures.log").exists()
    with dispensable("curve"):
        raise KeyError("a fault of the program")
    assert "failed: KeyError" in said[-1]
    assert "a fault of the program" in (tmp_path / "failures.log").read_text()


@pytest.mark.parametrize(
    "error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM"), KeyboardInterrupt()]
)
def test_what_ends_all_ends_the_run(error: BaseException) -> None:
    with pytest.raises(type(error)), Dispensable(print)("page"):
        raise error
