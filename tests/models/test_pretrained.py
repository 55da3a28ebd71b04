"""Loading weights: every format, by name, with nothing skipped silently."""

import functools
import json
import re

import h5py
import numpy as np
import pytest
import tensorflow as tf

from models import guess_model, load_weights
from models.weight_files import WeightsError, find_weights
from models.weight_names import common_names
from tests.helpers.toy_models import (
    PUBLISHED,
    keras,
    noise,
    randomise,
    real_model,
    toy_deeplab,
    toy_efficientdet,
    write_checkpoint,
)


@functools.lru_cache
def built(which, build, **options):
    return build(**options)


def pair(build, **options):
    """Two like models with other values: one to save, one to load into."""
    return tuple(randomise(built(which, build, **options), seed=which) for which in (0, 1))


def efficientdets():
    return pair(toy_efficientdet, fpn_min_level=3)


def save_own(kind, model, folder):
    """Our own weights in each format that we write; returns the path to load."""
    if kind == "checkpoint":
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        tf.train.Checkpoint(model=model, optimizer=optimizer, step=tf.Variable(3)).save(folder / "step")
    elif kind == "keras":
        model.save(folder / "model.keras")
    else:
        model.save_weights(folder / kind)
    return folder


def values(model):
    """{name: value} as in the published checkpoints."""
    return {variable.name.partition(":")[0]: variable.numpy() for variable in model.variables}


@pytest.mark.parametrize("kind", ["checkpoint", "keras", "a.h5", "a.weights.h5", "tf_weights"])
def test_own_weights_give_equal_outputs(kind, tmp_path):
    saved, loaded = efficientdets()
    report = load_weights(loaded, save_own(kind, saved, tmp_path))
    assert len(report.loaded) == len(saved.variables)
    assert report.random == ()
    images = noise(1, 128, 128, 3)
    np.testing.assert_array_equal(loaded(images), saved(images))


def test_deeplabs_h5_by_layer_name_without_the_logits_of_other_classes(tmp_path):
    (saved, _), (_, loaded) = pair(toy_deeplab, num_classes=21), pair(toy_deeplab)
    saved.save_weights(tmp_path / "deeplab.h5")
    report = load_weights(loaded, tmp_path / "deeplab.h5")
    assert report.random == ("logits_semantic/kernel:0", "logits_semantic/bias:0")
    assert f"loaded {len(saved.variables) - 2} of {len(saved.variables)} variables" in str(report)
    assert "random stay logits_semantic" in str(report)
    stored = {name: value for name, value in values(saved).items() if not name.startswith("logits_semantic")}
    np.testing.assert_equal({name: value for name, value in values(loaded).items() if name in stored}, stored)


def test_layer_names_count_not_the_names_of_weights(tmp_path):
    saved, loaded = pair(toy_deeplab)
    saved.save_weights(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:  # as Keras writes for the second model of a process
        group = file["aspp0"]
        group.move("aspp0/kernel:0", "aspp0_1/kernel:0")
        group.attrs["weight_names"] = [b"aspp0_1/kernel:0"]
    load_weights(loaded, tmp_path / "a.h5")
    np.testing.assert_array_equal(*(model.get_layer("aspp0").get_weights()[0] for model in (saved, loaded)))


def test_the_moving_average_is_preferred(tmp_path):
    saved, model = efficientdets()
    stored = values(saved)
    averages = {f"{name}/ExponentialMovingAverage": value + 1 for name, value in stored.items()}
    slots = {f"{name}/Momentum": value for name, value in stored.items()}
    report = load_weights(model, write_checkpoint(tmp_path / "model", {**stored, **averages, **slots}))
    assert report.random == ()
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, stored[name] + 1)


def test_object_based_checkpoint_known_by_its_variables_names(tmp_path):
    saved, loaded = efficientdets()
    variables = {
        f"v{i}": tf.Variable(v, name=v.name.partition(":")[0]) for i, v in enumerate(saved.variables)
    }
    tf.train.Checkpoint(**variables).write(tmp_path / "model")
    assert load_weights(loaded, tmp_path / "model").random == ()
    np.testing.assert_equal(values(loaded), values(saved))


def test_an_optimizers_averages_are_not_taken_for_weights(tmp_path):
    names = ["Adam/m/efficientnet-b0/stem/conv2d/kernel", "efficientnet-b0/stem/conv2d/kernel:0"]
    assert common_names(names) == {"backbone/stem/conv2d/kernel": names[::-1]}


def test_levels_of_the_bifpn_are_matched_by_stride(tmp_path):
    saved, loaded = built(0, toy_efficientdet, num_classes=3, fpn_min_level=3), built(1, toy_efficientdet)
    randomise(saved)
    report = load_weights(loaded, write_checkpoint(tmp_path / "model", values(saved)))
    stored, now = values(saved), values(loaded)
    for theirs, ours in (  # P3 on the way down, P4 on the way up, the head's step from P4 to P3
        ("fnode3/op_after_combine8/conv/pointwise_kernel", "fnode3/op_after_combine10/conv/pointwise_kernel"),
        ("fnode4/op_after_combine9/conv/pointwise_kernel", "fnode8/op_after_combine15/conv/pointwise_kernel"),
        ("fnode4/resample_0_1_9/conv2d/kernel", "fnode8/resample_0_3_15/conv2d/kernel"),
    ):
        np.testing.assert_array_equal(now[f"fpn_cells/cell_0/{ours}"], stored[f"fpn_cells/cell_0/{theirs}"])
    np.testing.assert_array_equal(*(v["segmentation_head/conv2d_transpose_3/kernel"] for v in (now, stored)))
    random = " ".join(report.random)
    assert "fnode5/op_after_combine12/bn/gamma" in random  # P1
    assert "conv2d_transpose_4/kernel" in random  # theirs is the layer of the classes, ours is P3 to P2
    assert "efficientnet" not in random


def test_published_names_as_listed(tmp_path):
    listed = json.loads((PUBLISHED / "efficientdet_checkpoint_variables.json").read_text())["efficientdet-d4"]
    stored = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(listed["variables"])}
    model = real_model("effdetd4", 3, fpn_min_level=3)
    report = load_weights(model, write_checkpoint(tmp_path / "model", stored))
    assert {name.partition("/")[0] for name in report.random} == {"segmentation_head"}
    assert {name.partition("/")[0] for name in report.unused} == {"class_net", "box_net"}
    np.testing.assert_array_equal(
        model.get_layer("efficientnet-b4/stem/conv2d").get_weights()[0],
        stored["efficientnet-b4/stem_1/conv2d_1/kernel"],
    )


@pytest.mark.parametrize("top", [True, False])
def test_keras_applications_backbone(top, tmp_path):
    theirs = randomise(
        keras.applications.EfficientNetB0(include_top=top, weights=None, input_shape=(64, 64, 3))
    )
    theirs.save_weights(tmp_path / "efficientnetb0.h5")
    ours = real_model("effdetd0", 3, fpn_min_level=3)
    report = load_weights(ours, tmp_path)
    assert not [name for name in report.random if name.startswith("efficientnet")]
    assert not [name for name in report.unused if name.startswith("block")]
    level5 = keras.Model(
        ours.input, ours.get_layer("efficientnet-b0/blocks_15/tpu_batch_normalization_2").output
    )
    features = keras.Model(
        theirs.get_layer("stem_conv_pad").input, theirs.get_layer("block7a_project_bn").output
    )
    images = noise(1, 64, 64, 3)
    np.testing.assert_allclose(level5(images), features(images), rtol=1e-4, atol=1e-3)


def test_a_wrong_shape_is_an_error_that_names_it(tmp_path):
    saved, loaded = efficientdets()
    stored, kept = values(saved), values(loaded)
    stored["resample_p6/conv2d/kernel"] = np.zeros((1, 1, 80, 9), np.float32)
    with pytest.raises(
        WeightsError, match=r"resample_p6/conv2d/kernel is \(1, 1, 80, 9\), the model's \(1, 1, 48, 8\)"
    ):
        load_weights(loaded, write_checkpoint(tmp_path / "model", stored))
    np.testing.assert_equal(values(loaded), kept)  # nothing was half loaded


def test_text_in_a_checkpoint_is_an_error(tmp_path):
    saved, loaded = efficientdets()
    stored = values(saved)
    name = "efficientnet-b0/stem/conv2d/kernel"
    stored[name] = np.full(stored[name].shape, b"text")
    with pytest.raises(WeightsError, match=f"{name} holds no numbers"):
        load_weights(loaded, write_checkpoint(tmp_path / "model", stored))


def test_more_blocks_than_the_model_has_are_an_error(tmp_path):
    saved, loaded = efficientdets()
    stored = values(saved)
    stored["efficientnet-b0/blocks_99/conv2d/kernel"] = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(WeightsError, match="blocks_99/conv2d/kernel has no place in the model"):
        load_weights(loaded, write_checkpoint(tmp_path / "model", stored))


def test_another_models_file_is_an_error_that_says_whose_it_is(tmp_path):
    pair(toy_deeplab)[0].save_weights(tmp_path / "a.h5")
    with pytest.raises(
        WeightsError, match=r"fits nothing of toy \(its names and shapes are those of deeplab\)"
    ):
        load_weights(efficientdets()[1], tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["a.h5", "a.keras", "a.index"])
def test_an_unreadable_file_is_an_error_that_names_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "a"))):
        load_weights(efficientdets()[1], tmp_path / name)


@pytest.mark.parametrize("kind", ["checkpoint", "keras", "a.h5"])
def test_a_files_model_is_told_from_its_names(kind, tmp_path):
    assert guess_model(save_own(kind, efficientdets()[1], tmp_path)) == "effdetd0"


def test_deeplab_is_told_from_an_h5(tmp_path):
    pair(toy_deeplab)[0].save_weights(tmp_path / "any_name.h5")
    assert guess_model(tmp_path / "any_name.h5") == "deeplab"


def test_the_latest_checkpoint_of_a_folder_that_moved(tmp_path):
    (tmp_path / "old").mkdir()
    checkpoint = tf.train.Checkpoint(v=tf.Variable(1.0))
    manager = tf.train.CheckpointManager(checkpoint, tmp_path / "old", max_to_keep=2)
    for number in (1, 2):
        manager.save(number)
    (tmp_path / "old").rename(tmp_path / "new")
    assert find_weights(tmp_path / "new") == tmp_path / "new" / "ckpt-2"
    assert find_weights(tmp_path / "new" / "ckpt-1.index") == tmp_path / "new" / "ckpt-1"
    assert find_weights(tmp_path) == tmp_path / "new" / "ckpt-2"


def test_a_folder_with_none_or_two_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="found none"):
        find_weights(tmp_path)
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"a\.h5, .*b\.h5"):
        find_weights(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        find_weights(tmp_path / "missing")
