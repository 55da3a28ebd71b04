"""Tables from option to test: whether they are complete, and their tests are there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def check_table(parser: argparse.ArgumentParser, tested: dict[str, str]) -> None:
    """`tested`: of test_<file>.py "<test without test_>: <option> <option>, <test>: …". An option may have several."""
    listed: set[str] = set()
    for file, entries in tested.items():
        (path,) = TESTS.rglob(f"test_{file}.py")
        text = path.read_text()
        for entry in entries.split(", "):
            name, options = entry.split(": ")
            assert re.search(rf"^def test_{name}\(", text, re.MULTILINE), f"test_{file}.py has no test_{name}"
            listed |= set(options.split())
    assert listed == {action.dest for action in parser._actions} - {"help"}
