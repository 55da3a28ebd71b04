"""Measures one network of `benchmarks/peers.py` in a process of its own: ours, or a peer's from where its code lies.

python benchmarks/peer_step.py '{"peer": "torch", "work": "train", ...}'     what peers.py runs; the options are its own

For each line that it reads it runs some steps and prints a JSON object, that of `benchmarks/train_step.py` and what was
measured. Only the peer's packages are needed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import forward, train_step

LEARNING_RATE = 1e-3

Step = Callable[[], Any]
# Images float32 (B, H, W, 3), and whether it trains → logits (B, H', W', classes).
Network = Callable[[Any, bool], Any]


def suite(options: argparse.Namespace) -> Step:
    """Return the step of the version of this suite that lies at `path`."""
    sys.path.insert(0, options.path)
    defaults = vars(train_step.build_parser().parse_args([]))
    case = argparse.Namespace(**{**defaults, **vars(options)})
    return train_step.make_step(case) if options.work == "train" else forward.make_forward(case)


def automl(options: argparse.Namespace) -> Step:
    """Return a step of EfficientDet for segmentation of google/automl, folder `efficientdet`."""
    _prepare_tensorflow(options)
    config = importlib.import_module("hparams_config").get_efficientdet_config(
        options.model.replace("effdet", "efficientdet-")
    )
    config.heads, config.seg_num_classes = ["segmentation"], options.num_classes
    config.min_level = options.fpn_min_level
    network = importlib.import_module("tf2.efficientdet_keras").EfficientDetNet(config=config)
    return _tensorflow_step(options, network, lambda images, training: network(images, training=training)[0])


def bonlime(options: argparse.Namespace) -> Step:
    """Return a step of DeepLabV3+ (Xception-65) of bonlime/keras-deeplab-v3-plus.

    It was written for Keras inside of TensorFlow, `tensorflow.python.keras`: that is tf_keras today.
    """
    _prepare_tensorflow(options)
    importlib.import_module("tf_keras")
    for name, module in list(sys.modules.items()):
        if name == "tf_keras.src" or name.startswith("tf_keras.src."):
            sys.modules[name.replace("tf_keras.src", "tensorflow.python.keras", 1)] = module
    network = importlib.import_module("model").Deeplabv3(
        weights=None,
        input_shape=(options.img_size, options.img_size, 3),
        classes=options.num_classes,
        backbone="xception",
        OS=options.output_stride,
    )
    return _tensorflow_step(options, network, lambda images, training: network(images, training=training))


def _prepare_tensorflow(options: argparse.Namespace) -> None:
    os.environ["TF_USE_LEGACY_KERAS"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1", "2"
    sys.path.insert(0, options.path)
    import tensorflow as tf

    if options.mixed_precision != "float32":
        tf.keras.mixed_precision.set_global_policy(f"mixed_{options.mixed_precision}")


def _tensorflow_step(options: argparse.Namespace, model: Any, network: Network) -> Step:
    import tensorflow as tf

    optimizer = tf.keras.optimizers.legacy.Adam(LEARNING_RATE)  # the faster one on CPUs, which ours has
    images = tf.constant(train_step.images_of(options))
    labels = tf.cast(images[..., 0] % options.num_classes, tf.int32)

    def logits_of(images: tf.Tensor, training: bool) -> tf.Tensor:
        logits = tf.cast(network(tf.cast(images, tf.float32) / 127.5 - 1, training), tf.float32)
        size = images.shape[1:3]
        return logits if logits.shape[1:3] == size else tf.image.resize(logits, size)

    @tf.function
    def train(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits_of(images, True))
            loss = tf.reduce_mean(each)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    @tf.function
    def predict(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(logits_of(images, False))

    if options.work == "forward":
        return lambda: predict(images).numpy()
    return lambda: train(images, labels).numpy()


def pytorch(options: argparse.Namespace) -> Step:
    """Return a step of a network of segmentation_models_pytorch, with random weights.

    It has what helps it on CPUs: channels last, the fused Adam, and weights in bfloat16 in a forward pass of bfloat16.
    """
    import segmentation_models_pytorch as smp
    import torch

    network = getattr(smp, options.network)(
        encoder_name=options.encoder, encoder_weights=None, classes=options.num_classes
    ).to(memory_format=torch.channels_last)
    images = torch.from_numpy(train_step.images_of(options))
    labels = images[..., 0].long() % options.num_classes
    low = options.mixed_precision == "bfloat16"

    def prepared() -> Any:
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W), channels last in memory

    if options.work == "forward":
        number = torch.bfloat16 if low else torch.float32
        network = network.eval().to(number)

        @torch.inference_mode()
        def predict() -> Any:
            return network(prepared().to(number)).float().softmax(1).numpy()

        return predict

    optimizer = torch.optim.Adam(network.train().parameters(), LEARNING_RATE, fused=True)

    def train() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = network(prepared())
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    return train


PEERS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "suite": suite,
    "automl": automl,
    "bonlime": bonlime,
    "torch": pytorch,
}
PACKAGES = ("tensorflow", "tensorflow_cpu", "tf_keras", "torch", "segmentation_models_pytorch", "timm")


def version(options: argparse.Namespace) -> str:
    """Return what was measured: the network, the commit of the code at `path`, the packages' versions."""
    level = f" from P{options.fpn_min_level}" if options.model.startswith("effdet") else ""
    words = [f"{options.model}{level}"]
    if options.peer == "torch":
        words = [f"{options.network} with {options.encoder}"]
    else:
        command = ["git", "-C", options.path, "describe", "--always", "--dirty", "--exclude=*"]
        words.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    for package in PACKAGES:
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if package.split("_")[0] in sys.modules or package in sys.modules:
            words.append(f"{package} {found}")
    return ", ".join(word for word in words if word)


def main(argv: list[str]) -> None:
    options = argparse.Namespace(**json.loads(argv[0]))
    step = PEERS[options.peer](options)
    for _ in range(options.warm_up):
        step()
    options.warm_up = 0
    print(json.dumps({"version": version(options)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(train_step.measure(options, step)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
