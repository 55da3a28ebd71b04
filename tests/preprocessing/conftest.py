"""Slides in the layout of CAMELYON17, and all their patches."""

from __future__ import annotations

from pathlib import Path

import pytest

from CAMELYON17_PREPROCESSING.preprocess import main
from tests.helpers.preprocessing import words
from utils.demo.camelyon17 import make_camelyon17_demo


@pytest.fixture(scope="module")
def demo17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two centres with a patient of two slides each, one of these without annotation."""
    return make_camelyon17_demo(tmp_path_factory.mktemp("demo17"), patients=1, size=1024)


@pytest.fixture(scope="module")
def whole(demo17: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    assert main(words(demo17, out)) == 0
    return out
