"""A rank whose group is not there."""

from __future__ import annotations

import tensorflow as tf

from models.spatial.exchange import gather, take_rows
from utils.ranks.lone_member import LoneMember, LoneWorld


def test_it_has_neighbours_on_both_sides_where_anyone_has():
    assert [LoneMember.inside(ranks).rank for ranks in (1, 2, 3, 4, 8)] == [0, 0, 1, 1, 3]
    world = LoneWorld(member=LoneMember.inside(4))
    assert (world.size, world.is_first, world.group.size) == (1, True, 4)


def test_what_comes_has_its_shape_and_what_goes_is_noted():
    member = LoneMember.inside(4)
    have = [(0, 2), (2, 4), (4, 6), (6, 8)]
    need = [(start - 1, stop + 2) for start, stop in have]
    x = tf.ones([1, 2, 5, 3], tf.bfloat16)
    y = take_rows(x, have, need, 8, member, "conv")
    assert y.shape == (1, 5, 5, 3)
    # Two rows go up and one goes down, each 5 pixels of 3 channels of 2 bytes.
    assert member.sent == {"conv": [3 * 5 * 3 * 2]}
    assert gather(tf.ones([2, 7]), member, "moments").shape == (4, 2, 7)
    assert member.sent["moments"] == [3 * 2 * 7 * 4]
