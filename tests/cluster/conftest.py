"""A small cluster, and a clone of the suite on it whose network is a toy: a run takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, missing
from tests.helpers.clone import make_clone


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
    return make_clone(tmp_path_factory.mktemp("clone"), "toy_pixels.py")
