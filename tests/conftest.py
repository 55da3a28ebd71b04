"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TensorFlow is imported, as utils/env.sh does
os.environ["CACHE_DIR"] = ""  # nothing that one test finds about a slide is taken by another one

from utils.demo.slides import make_demo

_SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Slides with real texture and real files of the challenges; not part of the repository."""
    if not _SHARED.is_dir():
        pytest.skip(f"{_SHARED} is not there")
    return _SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated slides of 1536²: slides/tumor_00N.tif, masks/tumor_00N_mask.tif, xml/tumor_00N.xml."""
    return make_demo(tmp_path_factory.mktemp("demo"), train=3, val=0, size=1536) / "training"
