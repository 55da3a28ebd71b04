"""The spatial form of each kind of layer: how it runs on strips, by its own configuration, with its own variables."""

from __future__ import annotations

import tensorflow as tf
from tf_keras import layers

import models.layers
from models.deeplab import ResizeLike
from models.layers import Dropout, FastFusion
from models.spatial.norm import BATCH_NORM
from models.spatial.place import Call, Form, Place
from models.spatial.resize import RESIZE_LIKE, UPSAMPLING
from models.spatial.rows import Window


def form_of(layer: layers.Layer) -> Form:
    """Return the spatial form of a layer. ValueError names a layer that has none."""
    form = FORMS.get(type(layer))
    if form is None:
        raise ValueError(f"layer {layer.name} is a {type(layer).__name__}, which has no spatial form")
    return form


# --- layers that look at a pixel at a time -----------------------------------------------------------
def _pointwise_height(layer: layers.Layer, heights: tuple[int, ...]) -> int:
    """Return the height of inputs that all have the same one, or one row that goes for all."""
    if len({height for height in heights if height != 1}) > 1:
        raise ValueError(f"layer {layer.name} puts together feature maps of {heights} rows")
    return max(heights)


def _pointwise(place: Place, call: Call, inputs: tf.Tensor | list[tf.Tensor], training: bool) -> tf.Tensor:
    return call(inputs)


def _concatenated_height(layer: layers.Concatenate, heights: tuple[int, ...]) -> int:
    if layer.axis not in (-1, 3):
        raise ValueError(f"layer {layer.name} concatenates along axis {layer.axis}, not channels")
    return _pointwise_height(layer, heights)


# --- layers with a window ---------------------------------------------------------------------------
def _windows(layer: layers.Layer, height: int, width: int) -> tuple[Window, Window]:
    """Return how the layer's window moves over rows and over columns. ValueError for channels first."""
    if layer.data_format != "channels_last":
        raise ValueError(f"layer {layer.name} has its channels first")
    kernel = layer.pool_size if isinstance(layer, layers.MaxPooling2D) else layer.kernel_size
    dilation = getattr(layer, "dilation_rate", (1, 1))
    rows, columns = (
        Window.of(inputs, kernel[i], layer.strides[i], dilation[i], layer.padding)
        for i, inputs in enumerate((height, width))
    )
    return rows, columns


def _window_height(layer: layers.Layer, heights: tuple[int, ...]) -> int:
    return _windows(layer, heights[0], heights[0])[0].outputs


def _window(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    """Run the layer with padding "valid" on the rows that it needs, and columns that are padded here."""
    layer, width = place.layer, x.shape[2]
    rows, columns = _windows(layer, place.heights[0], width)
    if rows.size == rows.stride == 1:
        return call(x)
    value = x.dtype.min if isinstance(layer, layers.MaxPooling2D) else 0.0
    x = _pad_columns(place.take(x, rows.reads, value), columns, value)
    padding, layer.padding = layer.padding, "valid"
    try:
        return call(x)
    finally:
        layer.padding = padding


def _pad_columns(x: tf.Tensor, window: Window, value: float) -> tf.Tensor:
    before, after = -window.reads((0, 1))[0], window.reads((0, window.outputs))[1] - x.shape[2]
    if before <= 0 and after <= 0:
        return x  # what lies behind the last window is not read
    return tf.pad(x, [[0, 0], [0, 0], [before, max(after, 0)], [0, 0]], constant_values=value)


def _transposed_height(layer: layers.Conv2DTranspose, heights: tuple[int, ...]) -> int:
    if layer.padding != "same" or layer.output_padding is not None or layer.data_format != "channels_last":
        raise ValueError(f"transposed convolution {layer.name} is not padded as 'same', with channels last")
    if layer.kernel_size[0] < layer.strides[0]:
        raise ValueError(f"transposed convolution {layer.name} has a stride above the size of its kernel")
    return heights[0] * layer.strides[0]


def _transpose(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    """Scatter the rows that reach this rank's, and cut off what they make of others'.

    The layer keeps its padding, which is the same for any number of rows: oneDNN knows no other one, and what it does
    not know takes ten times as long in bfloat16.
    """
    layer, (start, stop) = place.layer, place.rows
    stride = layer.strides[0]
    # The window of the convolution whose gradient this layer is.
    window = Window.of(place.height, layer.kernel_size[0], stride, layer.dilation_rate[0], layer.padding)
    first = window.reached_by((start, stop))[0] * stride
    return call(place.take(x, window.reached_by))[:, start - first : stop - first]


def _padded_height(layer: layers.ZeroPadding2D, heights: tuple[int, ...]) -> int:
    return heights[0] + sum(layer.padding[0])


def _pad(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    (above, _), columns = place.layer.padding
    x = place.take(x, Window(1, 1, above, place.height).reads)
    return tf.pad(x, [[0, 0], [0, 0], columns, [0, 0]])


# --- layers that look at the whole patch -------------------------------------------------------------
def _pool(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    """Return the mean of all pixels (B, 1, 1, C) on each rank, computed in float32 at least."""
    if not place.divided:
        return call(x)
    wide = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    total = place.sum(tf.reduce_sum(wide, [1, 2], keepdims=True), "sum")
    return tf.cast(total / (place.heights[0] * x.shape[2]), x.dtype)


def _pooled_height(layer: layers.GlobalAveragePooling2D, heights: tuple[int, ...]) -> int:
    if not layer.keepdims:
        raise ValueError(f"layer {layer.name} does not keep the axes of rows and columns")
    return 1


def _drop(place: Place, call: Call, x: tf.Tensor, training: bool) -> tf.Tensor:
    """Draw for the whole patch, and take this rank's rows of it."""
    shape = place.layer.noise_shape
    if not training or not place.divided or (shape is not None and shape[1] == 1):
        return call(x, training=training)
    ones = tf.ones([x.shape[0], place.height, *x.shape[2:]], x.dtype)
    start, stop = place.rows
    return x * call(ones, training=True)[:, start:stop]


POINTWISE = Form(_pointwise_height, _pointwise)
WINDOW = Form(_window_height, _window)
KERAS_FORMS: dict[type, Form] = {
    layers.Activation: POINTWISE,
    layers.Add: POINTWISE,
    layers.Multiply: POINTWISE,
    layers.Concatenate: Form(_concatenated_height, _pointwise),
    layers.BatchNormalization: BATCH_NORM,
    layers.Conv2D: WINDOW,
    layers.DepthwiseConv2D: WINDOW,
    layers.SeparableConv2D: WINDOW,
    layers.MaxPooling2D: WINDOW,
    layers.Conv2DTranspose: Form(_transposed_height, _transpose),
    layers.ZeroPadding2D: Form(_padded_height, _pad),
    layers.UpSampling2D: UPSAMPLING,
    layers.GlobalAveragePooling2D: Form(_pooled_height, _pool),
}
OURS = (
    *(models.layers.BatchNormalization, models.layers.Conv2D, models.layers.Conv2DTranspose),
    *(models.layers.DepthwiseConv2D, models.layers.GlobalAveragePooling2D, models.layers.SeparableConv2D),
)
FORMS: dict[type, Form] = {
    **KERAS_FORMS,
    # These compute their gradients in another way, or fold a batch norm, and nothing else.
    **{kind: KERAS_FORMS[kind.__bases__[-1]] for kind in OURS},
    models.layers.Swish: POINTWISE,
    FastFusion: POINTWISE,
    ResizeLike: RESIZE_LIKE,
    Dropout: Form(_pointwise_height, _drop),
}
