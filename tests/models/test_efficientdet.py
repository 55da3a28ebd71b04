"""EfficientDet: the published variables, counts per part, the BiFPN's wiring, details that parity hangs on."""

import json

import numpy as np
import pytest
import tensorflow as tf

from models.catalog import MODELS
from models.efficientdet import bifpn_nodes, resample
from models.efficientnet import block_plan, round_filters
from models.layers import FastFusion
from tests.helpers.toy_models import PUBLISHED, keras, noise, real_model, shapes, toy_efficientdet


def count(model, prefix):
    """(trainable, other) parameters of the layers whose names start so."""
    total = [0, 0]
    for variable in model.variables:
        if variable.name.startswith(prefix):
            total[not variable.trainable] += int(np.prod(variable.shape))
    return tuple(total)


@pytest.mark.parametrize(
    ("name", "published"), [("effdetd0", "efficientdet-d0"), ("effdetd4", "efficientdet-d4")]
)
def test_variables_are_the_published_ones(name, published):
    listed = json.loads((PUBLISHED / "efficientdet_checkpoint_variables.json").read_text())[published]
    # The list of D4 was made with a second model in the process, so Keras counted its unnamed stem layers up.
    expected = {
        key.replace("stem_1/conv2d_1", "stem/conv2d").replace("stem_1/", "stem/"): shape
        for key, shape in listed["variables"] + listed["segmentation_head_3_classes"]
        if not key.startswith(("class_net", "box_net"))
    }
    assert shapes(real_model(name, 3, fpn_min_level=3).variables) == expected


@pytest.mark.parametrize(
    ("part", "d0", "d4"),
    [
        ("efficientnet-b", (3_595_388, 39_456), (16_742_216, 121_616)),
        ("resample_p6", (20_672, 128), (101_024, 448)),
        ("fpn_cells", (175_609, 3_712), (3_248_805, 27_328)),
        ("segmentation_head", (262_019, 512), (3_174_979, 1_792)),
    ],
)
def test_parameters_of_each_part(part, d0, d4):
    assert count(real_model("effdetd0", 3, fpn_min_level=3), part) == d0
    assert count(real_model("effdetd4", 3, fpn_min_level=3), part) == d4


def test_all_rows_have_the_published_widths_and_depths():
    plans = {name: block_plan(row.width, row.depth) for name, row in MODELS.items() if name != "deeplab"}
    assert [len(plan) for plan in plans.values()] == [16, 23, 23, 26, 32, 39, 45, 45]
    assert [plan[-1].filters for plan in plans.values()] == [320, 320, 352, 384, 448, 512, 576, 576]
    assert round_filters(32, 1.4) == 48  # B4's stem: 44.8


def test_bifpn_wiring_is_that_of_figure_3d():
    assert bifpn_nodes(3) == [
        (6, (3, 4)),
        (5, (2, 5)),
        (4, (1, 6)),
        (3, (0, 7)),
        (4, (1, 7, 8)),
        (5, (2, 6, 9)),
        (6, (3, 5, 10)),
        (7, (4, 11)),
    ]


@pytest.mark.parametrize(("min_level", "nodes"), [(1, 12), (2, 10), (3, 8)])
def test_the_bifpn_starts_at_the_level_asked_for(min_level, nodes):
    model = toy_efficientdet((128, 256), fpn_min_level=min_level)
    assert sum(isinstance(layer, FastFusion) for layer in model.layers) == nodes
    finest = model.get_layer(f"segmentation_head/skip_{6 - min_level}").output
    assert finest.shape[1:3] == (128 >> min_level, 256 >> min_level)
    assert model.output_shape == (None, 128, 256, 2)


def test_coarse_logits_are_resized_bilinearly():
    model = toy_efficientdet(128, fpn_min_level=3)
    coarse = keras.Model(model.input, model.get_layer("segmentation_head/conv2d_transpose_4").output)
    images = noise(1, 128, 128, 3)
    assert coarse(images).shape == (1, 32, 32, 2)
    np.testing.assert_allclose(model(images), tf.image.resize(coarse(images), (128, 128)), atol=1e-6)


def test_fpn_cells_overrides_the_number_of_cells():
    names = " ".join(shapes(toy_efficientdet(fpn_cells=2).variables))
    assert "fpn_cells/cell_1/" in names
    assert "fpn_cells/cell_2/" not in names


def test_fusion_is_normalised_and_ignores_negative_weights():
    fusion = FastFusion()
    fusion([tf.ones((1, 2, 2, 1))] * 3)
    fusion.set_weights([3.0, -5.0, 1.0])
    fused = fusion([tf.fill((1, 2, 2, 1), value) for value in (1.0, 10.0, 2.0)])
    np.testing.assert_allclose(fused, np.full((1, 2, 2, 1), (3 * 1 + 1 * 2) / (4 + 1e-4)), rtol=1e-6)


def test_resampling_pools_with_padding_and_repeats_pixels():
    x = tf.reshape(tf.range(-16.0, 0.0), (1, 4, 4, 1))  # all negative: padding must not win
    down, up = (resample(x, steps, 1, None, f"test_{steps}") for steps in (1, -1))
    np.testing.assert_array_equal(down[0, :, :, 0], [[-6, -5], [-2, -1]])
    np.testing.assert_array_equal(up[0, :2, :4, 0], [[-16, -16, -15, -15]] * 2)


def test_stochastic_depth_drops_whole_images_where_published():
    d0, d4 = (real_model(name, 3, fpn_min_level=3) for name in ("effdetd0", "effdetd4"))
    assert not [layer for layer in d0.layers if isinstance(layer, keras.layers.Dropout)]
    drops = [layer for layer in d4.layers if isinstance(layer, keras.layers.Dropout)]
    assert len(drops) == 25  # of 32 blocks those that add their input
    assert drops[-1].rate == pytest.approx(0.2 * 31 / 32)
    dropped = drops[-1](tf.ones((64, 2, 2, 1)), training=True).numpy()
    kept = np.float32(1 / (1 - drops[-1].rate))
    assert {tuple(np.unique(image)) for image in dropped} == {(0.0,), (kept,)}
