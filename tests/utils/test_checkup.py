"""What the doctor says of the ranks of a launcher: of facts that are made up, and of two ranks on this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.launch import run_python
from tests.helpers.toy_models import real_model
from utils import checkup
from utils.checkup import Facts, binding, describe_allreduce, differences, interfaces

A = Facts("node1", frozenset(range(4)), 8, {"eth0": "10.0.0.1"}, versions={"MPI library": "Open MPI v4.1.8"})
B = replace(A, host="node2", addresses={"eth0": "10.0.0.2"})


def test_ranks_that_are_alike_have_nothing_wrong():
    for function in (binding, differences, interfaces, checkup.problems_of_hosts):
        assert function([A, A, B, B]) == []


def test_a_version_that_differs_is_a_line_with_its_hosts():
    other = replace(B, versions={"MPI library": "Open MPI v5.0.1", "numpy": "2.2"})
    assert differences([A, A, other]) == [
        "MPI library differs: Open MPI v4.1.8 on node1; Open MPI v5.0.1 on node2",
        "numpy differs: missing on node1; 2.2 on node2",
    ]


def test_what_is_wrong_on_hosts_is_said_once():
    found = [replace(rank, wrong=["vips does not load"]) for rank in (A, A, B)]
    assert checkup.problems_of_hosts(found) == ["vips does not load on node1, node2"]


def test_ranks_with_one_core_each_or_with_too_few_together():
    narrow = [replace(A, cores=frozenset([i])) for i in (0, 1)]
    assert binding([*narrow, B])[0].startswith(
        "each rank has 1 of 8 cores, which its samplers share on node1: "
    )
    crowded = [replace(A, cores=frozenset([0, 1]))] * 3
    assert binding(crowded)[0].startswith("3 ranks share 2 of 8 cores on node1: ")
    assert binding([replace(rank, all_cores=2) for rank in narrow]) == []  # there are no more
    assert binding([replace(A, cores=frozenset([0]), all_cores=1)] * 2) == []


def test_networks_that_lead_nowhere():
    assert interfaces([A, replace(B, addresses={"eth0": "10.0.0.1"})]) == [
        "several hosts have the address 10.0.0.1"
    ]
    with_docker = [replace(rank, bridges=["docker0"]) for rank in (A, B)]
    assert "-mca btl_tcp_if_exclude lo,docker0" in interfaces(with_docker)[0]
    assert interfaces([replace(rank, chosen=True) for rank in with_docker]) == []
    assert interfaces(with_docker[:1] * 2) == []  # one host
    assert interfaces([replace(rank, versions={}) for rank in with_docker]) == []  # no Open MPI


def test_the_allreduce_is_told_for_each_model():
    assert describe_allreduce(1.368, 2) == (
        "17 MB per step of EfficientDet-D0 take 1.4 s (0.1 Gbit/s); EfficientDet-D4 about 8.5 s, DeepLabV3+ about 13 s"
    )


@pytest.mark.parametrize(
    ("name", "model"),
    [("EfficientDet-D0", "effdetd0"), ("EfficientDet-D4", "effdetd4"), ("DeepLabV3+", "deeplab")],
)
def test_the_gradients_are_those_of_the_models(name, model):
    variables = real_model(model, 2).trainable_variables
    assert 4 * sum(v.shape.num_elements() for v in variables) == pytest.approx(
        checkup.GRADIENTS[name], rel=0.01
    )


@pytest.mark.mpi
def test_two_ranks_are_one_report(tmp_path):
    done = run_python(["-m", "utils.doctor", "--log_dir", tmp_path / "a/b"], ranks=2, cwd=None)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "ranks                2 on 1 node",
        "allreduce            17 MB",
        "all is well          2 ranks",
    ):
        assert done.stdout.count(line) == 1, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mpi
def test_a_log_dir_that_cannot_be_written_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    done = run_python(["-m", "utils.doctor", "--log_dir", tmp_path / "file/b"], ranks=2)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"WRONG                --log_dir {tmp_path}/file/b cannot be written: " in done.stdout


def test_ranks_that_do_not_reach_each_other_are_given_up(tmp_path):
    """Rank 0 of two, of which the other one never comes."""
    code = (
        "import time, utils.checkup, utils.ranks.world as world\n"
        "utils.checkup.PATIENCE = 1.0\n"
        "world.init_world = lambda *_: time.sleep(60)\n"
        "utils.checkup.main_of_ranks(None)"
    )
    done = run_python(["-c", code], OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2")
    assert done.returncode == 1
    assert "WRONG                2 ranks do not reach each other within 1 s. " in done.stdout
