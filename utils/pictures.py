"""Pictures of patches with their label and prediction, for TensorBoard, the log folder and the README."""

from __future__ import annotations

import cv2
import numpy as np

from samplers.labels.label_map import IGNORED, shows_tumour

# The RGB colours of classes 1, 2, …, which begin again after the last one. Class 0 is not painted, IGNORED is hatched.
COLOURS = np.array([(0, 200, 83), (41, 98, 255), (255, 171, 0), (213, 0, 249), (0, 184, 212)], np.uint8)
PARTS = ("patch", "label", "prediction", "outlines")  # of a panel
GAP = 4  # pixels between them
OUTLINE_LABEL, OUTLINE_PREDICTION = (0, 0, 0), (255, 234, 0)
HATCH, HATCH_PERIOD, HATCH_WIDTH = (
    (120, 120, 120),
    12,
    3,
)  # colour, and pixels from line to line and across a line


def colour_of(value: int) -> tuple[int, int, int]:
    r, g, b = COLOURS[(value - 1) % len(COLOURS)]
    return int(r), int(g), int(b)


def paint_classes(classes: np.ndarray) -> np.ndarray:
    """Return class values uint8 (H, W) as colours: uint8 RGB (H, W, 3), class 0 white, IGNORED hatched."""
    palette = np.full((256, 3), 255, np.uint8)
    palette[1:IGNORED] = COLOURS[np.arange(IGNORED - 1) % len(COLOURS)]
    return hatch(palette[classes], classes == IGNORED)


def hatch(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return a copy of RGB `image` (H, W, 3) with diagonal lines where the bool `where` (H, W) is set."""
    rows, columns = np.indices(where.shape, np.int32, sparse=True)
    result = image.copy()
    result[where & ((rows + columns) % HATCH_PERIOD < HATCH_WIDTH)] = HATCH
    return result


def draw_outline(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], thickness: int = 2
) -> np.ndarray:
    """Return a copy of RGB `image` (H, W, 3) with the outline of the bool `mask` (H, W).

    What goes on beyond the image has no outline along its edge.
    """
    edge = 2 * thickness
    wider = cv2.copyMakeBorder(mask.astype(np.uint8), edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    contours, _ = cv2.findContours(wider, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(image.copy(), contours, -1, colour, thickness, offset=(-edge, -edge))


def panel(image: np.ndarray, label: np.ndarray, prediction: np.ndarray, size: int = 512) -> np.ndarray:
    """Return patch | label | prediction | outlines side by side, each downsized to at most `size` pixels.

    `image` uint8 RGB (H, W, 3), `label` and `prediction` uint8 (H, W) class values. Of the outlines the
    label's outline is black and the prediction's is yellow. Where the label is IGNORED, both are hatched.
    """
    scale = min(1.0, size / max(label.shape))
    width, height = round(label.shape[1] * scale), round(label.shape[0] * scale)

    def resized(pixels: np.ndarray, interpolation: int) -> np.ndarray:
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation))

    small = resized(image, cv2.INTER_AREA)
    truth, predicted = (resized(c.astype(np.uint8), cv2.INTER_NEAREST) for c in (label, prediction))
    overlay = hatch(small, truth == IGNORED)
    shown = [int(classes[shows_tumour(classes)].max(initial=0)) for classes in (truth, predicted)]
    for value in range(1, max(shown) + 1):
        overlay = draw_outline(overlay, np.equal(truth, value), OUTLINE_LABEL, 3)
        overlay = draw_outline(overlay, np.equal(predicted, value), OUTLINE_PREDICTION, 2)
    gap = np.full((height, GAP, 3), 128, np.uint8)
    parts = [small, gap, paint_classes(truth), gap, paint_classes(predicted), gap, overlay]
    return np.concatenate(parts, axis=1)


def small_strip(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, size: int = 512
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a strip of a square patch as small as a `panel` of the patch shows it.

    So ranks that share a patch put together what a panel is drawn from without sending all pixels.
    """
    height, width = label.shape
    scale = min(1.0, size / width)
    shape = (round(width * scale), max(1, round(height * scale)))
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    truth, predicted = (cv2.resize(c, shape, interpolation=cv2.INTER_NEAREST) for c in (label, prediction))
    return small, truth, predicted


def split_panel(picture: np.ndarray) -> list[np.ndarray]:
    """Return the PARTS of a panel."""
    width = (picture.shape[1] + GAP) // len(PARTS)
    return [picture[:, i * width : (i + 1) * width - GAP] for i in range(len(PARTS))]
