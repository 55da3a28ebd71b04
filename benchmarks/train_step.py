"""Measures time and memory of a training step: normalise, forward, loss, backward and Adam in one tf.function.

    .venv/bin/python benchmarks/train_step.py --model effdetd0 --img_size 512 --batch_size 2 --fpn_min_level 3

The last line is a JSON object: median seconds per step after warm-up, images/s, peak RSS of the process in GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train.py
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.catalog import FPN_MIN_LEVELS, MODELS, OUTPUT_STRIDES
from models.from_options import PRECISIONS, set_precision


def build_parser() -> argparse.ArgumentParser:
    """Return the options of both model benchmarks."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="effdetd0")
    parser.add_argument("--img_size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--num_classes", type=int, default=2)
    parser.add_argument("--mixed_precision", choices=PRECISIONS, default="float32")
    parser.add_argument(
        "--fpn_min_level",
        type=int,
        choices=FPN_MIN_LEVELS,
        default=1,
        help="finest level of EfficientDet's BiFPN",
    )
    parser.add_argument("--output_stride", type=int, choices=OUTPUT_STRIDES, default=16, help="of DeepLab")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before these")
    return parser


def build(options: argparse.Namespace) -> Any:
    """Return the model that the options ask for, in their precision."""
    from models import build_model

    set_precision(options.mixed_precision)
    return build_model(
        options.model,
        options.img_size,
        options.num_classes,
        fpn_min_level=options.fpn_min_level,
        output_stride=options.output_stride,
    )


def images_of(options: argparse.Namespace) -> Any:
    """Return noise, uint8 (B, H, W, 3): time and memory do not depend on the picture."""
    import numpy as np

    shape = (options.batch_size, options.img_size, options.img_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def make_step(options: argparse.Namespace) -> Callable[[], Any]:
    """Return one training step as a function without arguments; it returns when the step is done."""
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    from models import normalise
    from training.losses import make_loss

    model, loss_of = build(options), make_loss("cross_entropy")
    scaled = options.mixed_precision == "float16"
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer) if scaled else optimizer
    images = tf.constant(images_of(options))
    labels = tf.constant(np.zeros(images.shape[:3], np.uint8))

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(normalise(options.model, images), training=True))
            target = optimizer.get_scaled_loss(loss) if scaled else loss
        gradients = tape.gradient(target, model.trainable_variables)
        gradients = optimizer.get_unscaled_gradients(gradients) if scaled else gradients
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    return lambda: step(images, labels).numpy()


def measure(options: argparse.Namespace, step: Callable[[], Any]) -> dict[str, Any]:
    """Run `step` and return the object that is printed."""
    times = []
    for _ in range(options.warm_up + options.steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    times = times[options.warm_up :]
    median = statistics.median(times)
    return {
        **vars(options),
        "seconds": round(median, 4),
        "fastest": round(min(times), 4),
        "images_per_second": round(options.batch_size / median, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    print(json.dumps(measure(options, make_step(options))))


if __name__ == "__main__":
    main()
