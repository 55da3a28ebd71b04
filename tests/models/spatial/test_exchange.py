"""The exchange of rows: what comes, its adjoint, and bfloat16, on several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.spatial.exchange import _add_rows, take_rows
from tests.helpers.launch import QUICK_EXCHANGES, run_python
from utils.ranks.group import Group

SCRIPT = Path(__file__).parents[2] / "helpers" / "row_exchange.py"


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "per_patch"), [(2, 2), (3, 3), (4, 2)])
def test_rows_come_as_they_are_and_gradients_go_back(ranks, per_patch):
    """With strips lower than the halo, a rank that others need nothing of, and one that sends the same twice.

    <Ax, y> = <x, A'y>.
    """
    done = run_python([SCRIPT, str(per_patch)], ranks=ranks, **QUICK_EXCHANGES)
    assert done.returncode == 0, done.stderr
    for case, result in json.loads(done.stdout.strip().splitlines()[-1]).items():
        assert result["wrong_rows"] == 0, case
        assert result["adjoint"] < (1e-12 if case != "bfloat16" else 1e-2), case


def test_a_rank_that_has_what_it_needs_asks_nobody():
    x = tf.reshape(tf.range(8.0), [1, 8, 1, 1])
    y = take_rows(x, [(0, 8)], [(-2, 5)], 8, Group(), "alone", 9.0)  # without Horovod
    assert y.numpy().ravel().tolist() == [9, 9, 0, 1, 2, 3, 4]


def test_rows_are_added_where_they_belong():
    x = tf.reshape(tf.range(8.0), [2, 4, 1, 1])
    total = _add_rows(x, tf.ones([2, 2, 1, 1]), 1)
    np.testing.assert_array_equal(total[:, :, 0, 0], [[0, 2, 3, 3], [4, 6, 7, 7]])
    assert _add_rows(x, x[:, :0], 4) is x
