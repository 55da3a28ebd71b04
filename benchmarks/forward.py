"""Measures time and memory of inference, from uint8 images to class probabilities, as the exported model does it.

    .venv/bin/python benchmarks/forward.py --model deeplab --img_size 1024 --batch_size 1

The last line is a JSON object, the same as of `benchmarks/train_step.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_step import build, build_parser, images_of, measure


def make_forward(options: argparse.Namespace) -> Callable[[], Any]:
    """Return one forward pass as a function without arguments; it returns when the pass is done."""
    import tensorflow as tf

    from models import serving_model
    from utils.ranks.devices import select_devices
    from utils.ranks.world import World

    select_devices(World(), no_cuda=False)  # as train.py and predict.py
    model = serving_model(options.model, build(options))
    forward = tf.function(lambda images: tf.reduce_mean(model(images, training=False)))
    images = tf.constant(images_of(options))
    return lambda: forward(images).numpy()


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    print(json.dumps(measure(options, make_forward(options))))


if __name__ == "__main__":
    main()
