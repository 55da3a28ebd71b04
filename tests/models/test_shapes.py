"""The shapes of all outputs, without computing them."""

from __future__ import annotations

import pytest

from models.shapes import largest_output, output_shapes
from tests.helpers.toy_models import toy_deeplab, toy_efficientdet


@pytest.mark.parametrize(("build", "size"), [(toy_efficientdet, 128), (toy_deeplab, 64)])
def test_shapes_are_those_of_a_model_of_that_size(build, size):
    built = build(size)
    found = output_shapes(build(None), (3, size, size, 3))
    assert list(found) == [layer.name for layer in built.layers]
    for layer in built.layers[1:]:
        assert found[layer.name] == (3, *layer.output_shape[1:]), layer.name


def test_a_rank_has_the_largest_strip_or_all_of_what_is_not_divided():
    shapes = {"wide": (2, 64, 64, 8), "low": (2, 4, 4, 9000)}
    assert largest_output(shapes, 64, 1) == ("low", 2 * 4 * 4 * 9000)
    assert largest_output({"wide": shapes["wide"]}, 64, 4) == ("wide", 2 * 16 * 64 * 8)
    assert largest_output(shapes, 64, 4) == ("low", 2 * 4 * 4 * 9000)  # a strip would have a single row
