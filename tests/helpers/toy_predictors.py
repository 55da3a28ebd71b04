"""Exported models that are functions of a pixel, of its neighbours or of the patch, and slides for them.

python -m tests.helpers.toy_predictors KIND FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import cv2
import numpy as np
import tensorflow as tf

from tests.helpers.lesion_slides import LESION_RED, level
from tests.helpers.tiny_slides import write_levels

SPACING = 0.5  # µm/px of the slides


def _lesion(images: tf.Tensor) -> tf.Tensor:
    """Return 1 where red is 255, as it is in the lesions of tests.helpers.lesion_slides."""
    return tf.clip_by_value((tf.cast(images[..., 0], tf.float32) - 245) / 10, 0, 1)


def _red(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images[..., 0], tf.float32) / 255


def _blurred(images: tf.Tensor) -> tf.Tensor:
    """Return red, blurred. Beyond the patch there are zeros, as for a convolution, so that its edges are dark."""
    kernel = tf.ones((15, 15, 1, 1)) / 15**2
    return tf.nn.conv2d(_red(images)[..., None], kernel, 1, "SAME")[..., 0]


def _sloping(images: tf.Tensor) -> tf.Tensor:
    """Return values that grow from 0 at the patch's left to 1 at its right, whatever is on it."""
    columns = tf.linspace(0.0, 1.0, tf.shape(images)[2])
    return tf.zeros_like(_red(images)) + columns


def _batch(images: tf.Tensor) -> tf.Tensor:
    """Return a tenth of the number of patches in the batch."""
    return tf.zeros_like(_red(images)) + tf.cast(tf.shape(images)[0], tf.float32) / 10


KINDS = {"lesion": _lesion, "red": _red, "blurred": _blurred, "sloping": _sloping, "batch": _batch}


class Toy(tf.Module):
    """Class probabilities of one of KINDS; of "three" the classes are by red: up to 100, up to 200, above."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        if self.kind == "three":
            classes = tf.cast(images[..., 0] > 100, tf.int32) + tf.cast(images[..., 0] > 200, tf.int32)
            return tf.one_hot(classes, 3, 0.8, 0.1)
        tumour = KINDS[self.kind](images)
        return tf.stack([1 - tumour, tumour], -1)


def export(kind: str, folder: Path) -> Path:
    tf.saved_model.save(Toy(kind), str(folder))
    return folder


def slide_with(path: Path, tumour: np.ndarray, seed: int = 0) -> Path:
    """Write a lossless slide of tissue in a frame of glass. Red is 255 where `tumour`, bool (h, w), is true."""
    height, width = tumour.shape
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 245, np.uint8)
    texture = rng.integers(0, 110, (height, width, 3)) + np.array([120, 40, 110])
    image[40:-40, 40:-40] = texture[40:-40, 40:-40]
    image[tumour] = (texture * (0, 1, 1) + (LESION_RED, 0, 0))[tumour]
    return write_levels(path, [level(image, step) for step in (1, 2, 4)], SPACING)


def rings(width: int = 1000, height: int = 700) -> np.ndarray:
    """Return a mask of tumour whose outlines are difficult.

    It has a ring around an island with a hole, two rectangles that touch by a corner, and a speck.
    """
    mask = np.zeros((height, width), np.uint8)
    for radius, value in ((250, 1), (200, 0), (130, 1), (60, 0)):
        cv2.circle(mask, (380, 350), radius, value, -1)
    mask[100:300, 700:800] = mask[300:480, 800:900] = 1
    mask[600:603, 700:704] = 1
    return mask > 0


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
