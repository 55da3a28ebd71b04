"""The models: one registry (`models.catalog`), one file a model. Importing this imports no TensorFlow yet.

model = build_model("effdetd0", img_size=1024, num_classes=2)
report = load_weights(model, "efficientdet-d0/")
logits = model(normalise("effdetd0", images_uint8))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.catalog import (
    FPN_MIN_LEVELS,
    MODELS,
    OUTPUT_STRIDES,
    EfficientDetRow,
    lookup,
    multiple_of,
)
from models.weight_files import guess_model

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    from models.pretrained import LoadReport
    from models.recompute import Run

CLASSES_FILE = "classes.json"  # in the folder of an exported model: a list of names for each class

__all__ = [
    "CLASSES_FILE",
    "MODELS",
    "build_model",
    "guess_model",
    "load_weights",
    "multiple_of",
    "normalise",
    "serving_model",
    "training_network",
]

BN_MOMENTUM = 0.99  # of both published models
BN_EPSILON = 1e-3


def build_model(
    name: str,
    img_size: int | Sequence[int] | None = None,
    num_classes: int = 2,
    *,
    fpn_min_level: int = 1,
    fpn_cells: int | None = None,
    output_stride: int = 16,
    batch_norm: Any = None,
    bn_momentum: float | None = None,
) -> keras.Model:
    """Build the network: normalised float images (B, H, W, 3) → float32 logits (B, H, W, classes).

    `img_size` is a side or (height, width) in pixels, None for any; the weights fit every size.
    `fpn_min_level` and `fpn_cells` (None: as published) are EfficientDet's, `output_stride` is DeepLab's.
    `batch_norm` is a layer class to use in place of the models' own (say hvd.SyncBatchNormalization).
    Follows the global policy of mixed precision. ValueError for what no model can be built of.
    """
    import tf_keras as keras

    from models.layers import BatchNormalization

    row = lookup(name)
    height, width = _height_width(name, img_size)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but the softmax needs at least 2")
    momentum = BN_MOMENTUM if bn_momentum is None else bn_momentum
    norm = functools.partial(batch_norm or BatchNormalization, momentum=momentum, epsilon=BN_EPSILON)
    images = keras.Input((height, width, 3), name="images")
    if isinstance(row, EfficientDetRow):
        from models import efficientdet

        cells = row.fpn_cells if fpn_cells is None else fpn_cells
        if fpn_min_level not in FPN_MIN_LEVELS or cells < 1:
            raise ValueError(
                f"fpn_min_level {fpn_min_level} is not in {FPN_MIN_LEVELS} or fpn_cells {cells} below 1"
            )
        logits = efficientdet.build(images, row, num_classes, fpn_min_level, cells, norm)
    else:
        from models import deeplab

        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride {output_stride} is not in {OUTPUT_STRIDES}")
        logits = deeplab.build(images, num_classes, output_stride, norm)
    return keras.Model(images, logits, name=name)


def load_weights(model: keras.Model, path: str | Path) -> LoadReport:
    """Load weights, see `models.pretrained.load_weights`."""
    from models import pretrained

    return pretrained.load_weights(model, path)


def normalise(name: str, images: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Return uint8 RGB images (B, H, W, 3) as float32, normalised as model `name` was pre-trained."""
    return _normaliser(name)(images)


def training_network(
    name: str, model: keras.Model, recompute: str = "none", run: Run | None = None
) -> Callable[[tf.Tensor, bool], tf.Tensor]:
    """Return `model` as a function of uint8 RGB (B, H, W, 3) and whether it is training → float32 logits (B, H, W, C).

    `recompute`: "none" keeps all activations for the gradient, "blocks" what goes between blocks, "full" the
    images only, see models.recompute. `run` runs the model, or blocks of it, in another way than Keras: on strips of
    the images, see models.spatial.
    """
    from models import deeplab, efficientdet
    from models.recompute import Recomputed, call_model

    prepare, run = _normaliser(name), run or call_model
    if recompute == "none":
        return lambda images, training: run(model, prepare(images), training)

    block_of = (efficientdet if isinstance(lookup(name), EfficientDetRow) else deeplab).block_of
    return Recomputed(model, block_of, prepare, recompute == "full", run)


def serving_model(name: str, model: keras.Model) -> keras.Model:
    """Return the model to export: uint8 RGB (B, H, W, 3) → float32 class probabilities (B, H, W, classes).

    The network is one layer of it. As a model of 400 layers, each of which Keras saves and loads with functions
    of its own, D0 took 57 s to save and 20 s to load; so it takes 20 s and 5 s.
    """
    import tensorflow as tf
    import tf_keras as keras

    from models.folding import folded_batch_norms

    def apply(inputs: tf.Tensor) -> tf.Tensor:
        with folded_batch_norms(model):
            return model(inputs, training=False)

    traced = tf.function(
        apply,
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)],
        autograph=False,
    )

    class Network(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__(name=model.name, dtype="float32", trainable=False)
            self.weights_of_model = model.weights  # tracked, and by their names; the layers are not

        def call(self, inputs: tf.Tensor) -> tf.Tensor:
            return traced(inputs)

    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    logits = Network()(_normaliser(name)(images))
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(images, probabilities, name=f"{name}_serving")


def _normaliser(name: str) -> keras.layers.Layer:
    import tf_keras as keras

    row = lookup(name)
    scale = [1 / std for std in row.std]
    offset = [-mean / std for mean, std in zip(row.mean, row.std)]
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="normalise")


def _height_width(name: str, img_size: int | Sequence[int] | None) -> tuple[int | None, int | None]:
    if img_size is None:
        return None, None
    height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    multiple = multiple_of(name)
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise ValueError(f"img_size {height} x {width} is no multiple of {multiple}, as {name} needs")
    return height, width
