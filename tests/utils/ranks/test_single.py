"""Errors that all ranks share, and those that are faults of the program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.helpers.launch import run_python
from utils.cli import UserError
from utils.ranks.single import Ranks


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """The first of two ranks; the other one says `other`."""

    size: int = 2
    other: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.other]


def fail(error: Exception) -> None:
    raise error


def test_a_user_error_of_any_rank_is_raised_on_all():
    with pytest.raises(UserError, match=r"^mine\ntheirs$"):
        TwoRanks(other=["theirs"]).all_or_none(lambda: fail(UserError("mine")))
    with pytest.raises(UserError, match=r"^theirs$"):
        TwoRanks(other=["theirs"]).all_or_none(lambda: 1)
    assert TwoRanks(other=[""]).all_or_none(lambda: 1) == 1


@pytest.mark.parametrize("error", [ValueError("shapes differ"), OSError("no such device"), KeyError("x")])
def test_a_fault_of_the_program_is_not_taken_for_the_users(error):
    with pytest.raises(type(error)) as raised:
        TwoRanks(other=[""]).all_or_none(lambda: fail(error))
    assert raised.value is error


def test_a_fault_ends_with_its_traceback_and_1_and_loses_no_output(tmp_path):
    """Output without -u is buffered, and a rank that failed ends by os._exit."""
    code = (
        "import sys, train, training.data\n"
        "def prepare_slides(*words):\n"
        "    print('said before')\n"
        "    raise ValueError('a fault')\n"
        "train.prepare_slides = prepare_slides\n"
        f"sys.exit(train.main(['--slide_path', {str(tmp_path)!r}]))"
    )
    done = run_python(["-c", code], PYTHONUNBUFFERED="")
    assert done.returncode == 1
    assert "said before" in done.stdout
    assert "Traceback" in done.stderr
    assert "ValueError: a fault" in done.stderr
