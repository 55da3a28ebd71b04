"""Ctrl-C at any moment: one line, whatever predict.py and its threads are doing."""

from __future__ import annotations

import pytest

from tests.helpers.interrupting import imports, interrupt
from tests.helpers.predicting import words

QUIET = 130, ["interrupted: the same command goes on"]


@pytest.mark.parametrize("late", [0, 0.5, 1.5])
def test_ctrl_c_is_quiet_while_it_imports(late, toys, slides, tmp_path):
    assert interrupt(["predict.py", *words(toys / "lesion", slides, tmp_path)], imports, late) == QUIET


@pytest.mark.parametrize("late", [0, 0.1])
def test_ctrl_c_is_quiet_while_it_predicts_and_writes(late, toys, slides, tmp_path):
    command = ["predict.py", *words(toys / "lesion", slides, tmp_path, "--overlap", "0.7")]
    code, lines = interrupt(command, lambda _: list(tmp_path.glob(".work/*")), late)
    assert (code, lines[-1:]) == QUIET  # lines before it are TensorFlow's
    assert not [line for line in lines if "Traceback" in line]
