"""A small cluster, and a clone of the suite on it whose network is a toy: a run takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, missing
from tests.helpers.launch import ROOT

# train.py of the clone: the toy, which handles signals from its first line on as train.py does.
TRAIN = """
import runpy, sys
sys.path[:] = [{root!r}] + [path for path in sys.path if path != {clone!r}]
from utils.cli import EXIT_STOPPED
from utils.interrupt import end_quietly
if __name__ == "__main__":
    end_quietly(EXIT_STOPPED)
    runpy.run_path({program!r}, run_name="__main__")
"""
# What utils/env.sh leaves behind it, without a set-up: the environment is that of the tests.
ENVIRONMENT = """
MPI=${{MPI:-openmpi}} VENV={venv}
PATH=$VENV/bin:$PATH
export LD_LIBRARY_PATH="${{LD_LIBRARY_PATH:-}}"
export PATH MPI VENV TF_USE_LEGACY_KERAS=1
"""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where there can be no hosts."""
    reason = missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cluster")
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hosts with Slurm, for all tests of this folder. A test leaves them as it finds them."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as found:
        found.start_slurm()
        yield found


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the suite that trains a network of one pixel, which starts soon, in the tests' environment."""
    return make_clone(tmp_path_factory.mktemp("clone"))


def make_clone(folder: Path) -> Path:
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in ("utils", "train.py", "logs", "data"):
            (folder / path.name).symlink_to(path)
    (folder / "utils").mkdir()
    for path in (ROOT / "utils").iterdir():
        if path.name != "env.sh":
            (folder / "utils" / path.name).symlink_to(path)
    program = str(ROOT / "tests/helpers/toy_pixels.py")
    (folder / "train.py").write_text(TRAIN.format(root=str(ROOT), clone=str(folder), program=program))
    (folder / "utils/env.sh").write_text(ENVIRONMENT.format(venv=sys.prefix))
    return folder
