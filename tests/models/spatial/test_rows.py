"""Which rank has which rows, and which rows a layer reads: against TensorFlow's own layers."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models.spatial.rows import Plan, Strips, Window, overlap

KINDS = [(k, s, d) for k, s, d in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2, 6)) if s == 1 or d == 1]


def rows_that_matter(layer: keras.layers.Layer, height: int) -> list[list[int]]:
    """Return for each row of the output the rows of the input that it depends on."""
    impulses = tf.eye(height, dtype=tf.float64)[
        :, :, None, None
    ]  # a batch of images with one row each that is not 0
    return [np.flatnonzero(row).tolist() for row in layer(impulses).numpy()[:, :, 0, 0].T]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), KINDS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_window_reads_the_rows_that_tensorflow_reads(kernel, stride, dilation, padding):
    layer = keras.layers.Conv2D(
        1, (kernel, 1), strides=(stride, 1) if stride == 1 else stride, dilation_rate=(dilation, 1), padding=padding,
        kernel_initializer="ones", dtype="float64",
    )  # fmt: skip
    for height in (31, 32, 33):
        window = Window.of(height, kernel, stride, dilation, padding)
        found = rows_that_matter(layer, height)
        assert len(found) == window.outputs
        for i, rows in enumerate(found):
            start, stop = window.reads((i, i + 1))
            assert rows == [row for row in range(start, stop, dilation) if 0 <= row < height]


def test_a_transposed_window_is_reached_by_the_rows_that_tensorflow_reads():
    layer = keras.layers.Conv2DTranspose(
        1, (3, 1), strides=2, padding="same", kernel_initializer="ones", dtype="float64"
    )
    for height in (7, 8):
        window = Window.of(2 * height, 3, 2, 1, "same")
        for i, rows in enumerate(rows_that_matter(layer, height)):
            start, stop = overlap(window.reached_by((i, i + 1)), (0, height))
            assert rows == list(range(start, stop))


@pytest.mark.parametrize("bounds", [(0, 128), (0, 64, 128), (0, 37, 90, 128), (0, 32, 64, 96, 128)])
def test_the_strips_of_every_feature_map_are_all_rows_once_or_all_rows_on_each_rank(bounds):
    strips = Strips(tuple(itertools.pairwise(bounds)))
    for height in range(1, 129):
        found = strips.of(height)
        if strips.divides(height):
            assert [row for rows in found for row in range(*rows)] == list(range(height))
            assert min(stop - start for start, stop in found) >= strips.lowest
        else:
            assert found == [(0, height)] * len(found)


def test_strips_that_are_no_division_are_refused():
    for image in (((0, 8), (9, 16)), ((1, 8),), ((0, 8), (8, 8))):
        with pytest.raises(ValueError, match="no division"):
            Strips(image)


def test_what_a_rank_sends_is_what_the_other_receives():
    have = [(0, 4), (4, 6), (6, 12)]
    need = [(0, 9), (1, 12), (4, 12)]
    plans = [Plan.of(rank, have, need) for rank in range(3)]
    for i, j in itertools.product(range(3), repeat=2):
        assert (
            plans[i].sends[j][1] - plans[i].sends[j][0] == plans[j].receives[i][1] - plans[j].receives[i][0]
        )
        assert all(stop > start for start, stop in (plans[i].sends[i], plans[i].receives[i]))
    assert plans[0].receives == ((0, 1), (4, 6), (6, 9))


def test_a_rank_that_needs_none_of_its_rows_is_an_error():
    with pytest.raises(ValueError, match="needs none of its own"):
        Plan.of(0, [(0, 4), (4, 8)], [(4, 6), (4, 8)])
