"""train.py with a network that sees one pixel, so that strips of patches need nothing of each other.

With TOY_NORM=1 it has a batch norm, for which they do.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import tf_keras as keras

import models.from_options
import train
from models.layers import BatchNormalization


def one_pixel(name: str, img_size: Any, num_classes: int, **_: Any) -> keras.Model:
    x = images = keras.Input((None, None, 3), name="images")
    for number in range(4):  # Horovod divides the variables into groups, so it needs some
        x = keras.layers.Conv2D(8, 1, activation="relu", name=f"conv{number}")(x)
    if os.environ.get("TOY_NORM") == "1":
        x = BatchNormalization(name="norm")(x)
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, name="logits")(x), name="one_pixel")


if __name__ == "__main__":
    models.from_options.build_model = one_pixel
    sys.exit(train.main())
