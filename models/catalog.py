"""The models as rows of a table. There is no TensorFlow here: options are checked in the first second."""

from __future__ import annotations

from dataclasses import dataclass

# EfficientNet's inputs are whitened with ImageNet's statistics, in units of uint8 pixels here.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class EfficientDetRow:
    """A row of EfficientDet's table 1 (arXiv 1911.09070), with its backbone's scaling (arXiv 1905.11946)."""

    backbone: str  # name in the published checkpoints
    width: float  # EfficientNet's width and depth coefficients
    depth: float
    fpn_filters: int
    fpn_cells: int
    # Stochastic depth: chance that the last block is kept, earlier ones more often. Published D0: always.
    survival_prob: float = 0.8
    weighted_fusion: bool = True  # D6 and D7 add without weights, "for stability"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True)
class DeepLabRow:
    """DeepLabV3+ (arXiv 1802.02611) with the modified aligned Xception-65. Inputs go to [-1, 1]."""

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)


MODELS: dict[str, EfficientDetRow | DeepLabRow] = {
    #                            backbone           width depth filters cells
    "effdetd0": EfficientDetRow("efficientnet-b0", 1.0, 1.0, 64, 3, survival_prob=1.0),
    "effdetd1": EfficientDetRow("efficientnet-b1", 1.0, 1.1, 88, 4),
    "effdetd2": EfficientDetRow("efficientnet-b2", 1.1, 1.2, 112, 5),
    "effdetd3": EfficientDetRow("efficientnet-b3", 1.2, 1.4, 160, 6),
    "effdetd4": EfficientDetRow("efficientnet-b4", 1.4, 1.8, 224, 7),
    "effdetd5": EfficientDetRow("efficientnet-b5", 1.6, 2.2, 288, 7),
    "effdetd6": EfficientDetRow("efficientnet-b6", 1.8, 2.6, 384, 8, weighted_fusion=False),
    "effdetd7": EfficientDetRow("efficientnet-b6", 1.8, 2.6, 384, 8, weighted_fusion=False),
    "deeplab": DeepLabRow(),
}

FPN_MAX_LEVEL = 7  # P7, stride 128
FPN_MIN_LEVELS = (1, 2, 3)
OUTPUT_STRIDES = (8, 16)
RECOMPUTE = ("none", "blocks", "full")  # models/recompute.py


def lookup(name: str) -> EfficientDetRow | DeepLabRow:
    """Return the row of model `name`. ValueError names the models that there are."""
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; there are {', '.join(MODELS)}")
    return MODELS[name]


def multiple_of(name: str) -> int:
    """Return the number of pixels that both sides of an image must be a multiple of.

    EfficientDet's P7 has stride 128, and its way down must mirror its way up. DeepLab resizes to its skip's
    size, so it takes any size.
    """
    return 2**FPN_MAX_LEVEL if isinstance(lookup(name), EfficientDetRow) else 1
