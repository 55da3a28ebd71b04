"""Networks on several ranks have the loss, the gradients and the moving averages of one process."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tf_keras as keras

from models.spatial.network import Spatial, spatial_runner
from models.spatial.rows import Strips
from tests.helpers.launch import QUICK_EXCHANGES, run_python
from utils.ranks.group import Group

SCRIPT = Path(__file__).parents[2] / "helpers" / "spatial_steps.py"
EXACT = 1e-9
# Ranks, ranks per patch, cases of spatial_steps.py.
QUICK = [
    (2, 2, ("every_layer", "dice", "blocks", "odd")),
    (3, 3, ("every_layer", "uneven", "odd")),
    (4, 2, ("every_layer", "dice", "blocks")),
]
SLOW = [
    (2, 2, ("focal", "frozen", "full", "uneven", "p1")),
    (2, 2, ("p2", "p3", "stride16", "stride8", "d0_p1", "d0_p3", "deeplab16", "deeplab8")),
    (2, 2, ("low16", "low8")),
    (3, 3, ("p1", "p3", "stride16", "low16", "low8")),
    (3, 3, ("d0_p3", "deeplab16")),
    (4, 4, ("every_layer", "uneven", "odd", "full", "p1", "p3", "stride16", "stride8")),
    (4, 2, ("p1", "stride16", "d0_p1")),
]


@functools.lru_cache
def found(ranks: int, per_patch: int, cases: tuple[str, ...]) -> dict[str, Any]:
    """Return what spatial_steps.py prints; it starts once for all cases."""
    done = run_python([SCRIPT, str(per_patch), *cases], ranks=ranks, timeout=3600, **QUICK_EXCHANGES)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def assert_exact(errors: dict[str, tuple[float, str]]) -> None:
    for kind in ("loss", "gradient", "average"):
        error, name = errors[kind]
        assert error < EXACT, f"{kind} {name}"


def each(starts: list[tuple[int, int, tuple[str, ...]]]) -> list[Any]:
    return [
        pytest.param(*start, case, id=f"{start[0]}-{start[1]}-{case}")
        for start in starts
        for case in start[2]
    ]


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "per_patch", "cases", "case"), each(QUICK))
def test_loss_gradients_and_averages_are_those_of_one_process(ranks, per_patch, cases, case):
    assert_exact(found(ranks, per_patch, cases)[case])


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "per_patch", "cases", "case"), each(SLOW))
def test_real_networks_and_more_ranks_are_exact(ranks, per_patch, cases, case):
    assert_exact(found(ranks, per_patch, cases)[case])


@pytest.mark.mpi
def test_lower_precision_differs_by_its_rounding():
    errors = found(2, 2, ("float32", "bfloat16", "float16"))
    for case, rounding in (("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01)):
        assert errors[case]["loss"][0] < rounding
        assert errors[case]["all_gradients"][0] < rounding


def model_of(*layers: keras.layers.Layer) -> keras.Model:
    images = keras.Input((None, None, 3), name="images")
    x = images
    for layer in layers:
        x = layer(x)
    return keras.Model(images, x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            keras.layers.AveragePooling2D(name="surprise"),
            "surprise is a AveragePooling2D, which has no spatial form",
        ),
        (keras.layers.GlobalAveragePooling2D(name="surprise"), "surprise does not keep the axes"),
        (
            keras.layers.BatchNormalization(scale=False, name="surprise"),
            "batch norm surprise is not over pixels",
        ),
        (keras.layers.Conv2DTranspose(2, 3, strides=2, name="surprise"), "surprise is not padded as 'same'"),
    ],
)
def test_a_layer_without_a_spatial_form_is_named(layer, message):
    with pytest.raises(ValueError, match=message):
        spatial_runner(model_of(layer), 64, Group(size=2, count=1))


def test_a_layer_that_is_used_twice_is_refused():
    layer = keras.layers.Conv2D(3, 3, padding="same", name="surprise")
    with pytest.raises(ValueError, match="surprise is used 2 times"):
        spatial_runner(model_of(layer, layer), 64, Group(size=2, count=1))


def test_what_cannot_be_divided_is_refused():
    model = model_of(keras.layers.Conv2D(2, 3, padding="same"))
    with pytest.raises(ValueError, match="no division of a patch"):
        spatial_runner(model, 2, Group(size=3))
    with pytest.raises(ValueError, match="2 ranks cannot have 1 strips"):
        Spatial(model, Strips(((0, 64),)), Group(size=2))
    assert spatial_runner(model, 64, Group()) is None


def test_the_model_is_as_before_after_a_run_that_fails(monkeypatch):
    model = model_of(keras.layers.Conv2D(2, 3, padding="same"))
    spatial = Spatial(model, Strips(((0, 64),)), Group())
    with pytest.raises(ValueError):  # noqa: PT011 - Keras's, for channels that the model does not take
        spatial(model, keras.backend.zeros((1, 64, 64, 5)), training=False)
    assert "call" not in model.layers[1].__dict__
    assert model.layers[1].padding == "same"
