"""Folds batch normalisation into the convolutions before it, where a network is only applied.

With its averages, batch normalisation multiplies and adds per channel, which a convolution's kernel and bias can do at
no cost (Jacob et al. 2018, arXiv 1712.05877, section 3.2). TensorFlow does so itself for some kinds of convolution in
float32 and for none in bfloat16, where oneDNN's batch norm of channels that are no multiple of 16 was half of
DeepLabV3+'s forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from models.layers import BatchNormalization, Convolution


@contextlib.contextmanager
def folded_batch_norms(model: keras.Model) -> Iterator[None]:
    """Let the convolutions of a model multiply for the batch norms after them, while it is traced in inference mode.

    No variable changes. A batch norm stays as it is if it does not follow one of our convolutions, or if another layer
    takes the convolution's result as well.
    """
    nodes = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}

    def takers(layer: keras.layers.Layer) -> list[Any]:  # those of other models do not count
        return [node.layer for node in layer.outbound_nodes if id(node) in nodes]

    pairs = [
        (layer, norm)
        for norm in model.layers
        if isinstance(norm, BatchNormalization)
        and isinstance(layer := norm.input._keras_history.layer, Convolution)
        and len(takers(layer)) == 1
    ]
    for layer, norm in pairs:
        layer.factors = norm.factors
        norm.folded = True
        # TensorFlow 2.21 puts a convolution, a sum and a ReLU together even if others need the sum, and then gives up
        # on the whole graph ("remapper failed"). It does not look through what keeps a result apart.
        norm.apart = any(not isinstance(taker, keras.layers.Activation) for taker in takers(norm))
    try:
        yield
    finally:
        for layer, norm in pairs:
            layer.factors, norm.folded, norm.apart = None, False, False
