"""A trainer whose ranks share patches takes the steps of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.launch import QUICK_EXCHANGES, run_python
from training.option_checks import parse_options
from utils.cli import UserError
from utils.ranks.world import World, init_world

SCRIPT = Path(__file__).parents[1] / "helpers" / "spatial_trainer.py"


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "cases"), [(2, ["plain"]), pytest.param(3, ["plain", "frozen"], marks=pytest.mark.slow)]
)
def test_steps_precise_statistics_and_evaluations_are_those_of_one_process(ranks, cases):
    done = run_python([SCRIPT, str(ranks), *cases], ranks=ranks, **QUICK_EXCHANGES)
    assert done.returncode == 0, done.stderr
    for case, found in json.loads(done.stdout.strip().splitlines()[-1]).items():
        assert found["loss"] < 1e-6, case  # float32
        assert found["weight"] < 1e-9, case
        assert found["collectives"] > 100, case
        assert {
            key: value for key, value in found.items() if key.startswith(("wrong", "different")) and value
        } == {}, case


def test_groups_are_consecutive_ranks():
    worlds = [World(rank, 8, ranks_per_patch=4) for rank in range(8)]
    assert [world.group.index for world in worlds] == [0] * 4 + [1] * 4
    assert [world.group.rank for world in worlds] == [0, 1, 2, 3] * 2
    assert {(world.group.size, world.group.count) for world in worlds} == {(4, 2)}
    alone = World(5, 8).group
    assert (alone.rank, alone.size, alone.index, alone.count) == (0, 1, 5, 8)


def test_ranks_that_cannot_be_divided_into_groups_are_refused():
    with pytest.raises(
        UserError, match="--ranks_per_patch 4 does not divide the number of ranks, which is 1: start 4"
    ):
        init_world(True, ranks_per_patch=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--img_size 128 --ranks_per_patch 129",
            "--ranks_per_patch 129 is more than the rows of a patch: take 128",
        ),
        ("--ranks_per_patch 2 --adasum", "--adasum does not go with --ranks_per_patch"),
        ("--ranks_per_patch 2 --sync_batch_norm", "--sync_batch_norm does not go with --ranks_per_patch"),
        ("--ranks_per_patch 2 --no-horovod", "--ranks_per_patch needs Horovod"),
    ],
)
def test_what_does_not_go_with_strips_is_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(["--slide_path", str(tmp_path), *words.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
