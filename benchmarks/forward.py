"""Measures time and memory of inference, from uint8 images to class probabilities, as predict.py does it.

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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_step import build_parser, images_of, measure, set_up


def make_forward(options: argparse.Namespace) -> Callable[[], Any]:
    """Return one forward pass as a function without arguments; it returns when the pass is done."""
    train_options = set_up(options)
    from models import serving_model
    from models.from_options import network_from_options, set_precision
    from prediction.model import with_constant_weights

    set_precision(options.mixed_precision)
    network = network_from_options(train_options, options.num_classes)
    for weight in network.weights:  # TensorFlow leaves out what adds nothing, as nothing trained does
        if "beta" in weight.name or "bias" in weight.name:
            weight.assign(np.random.default_rng(0).normal(0, 0.1, weight.shape))
    model = serving_model(options.model, network)
    forward, images = with_constant_weights(model, options.img_size), images_of(options)
    return lambda: forward(images)


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    print(json.dumps(measure(options, make_forward(options))))


if __name__ == "__main__":
    main()
