"""Slides of a thousand pixels for the tests of the samplers: tissue on glass, lesions redder than the rest.

Lossless, so that a lesion's pixels are known: red is LESION_RED there and nowhere else but on glass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from samplers import SlidePair
from tests.helpers.tiny_slides import write_levels

WIDTH, HEIGHT, SPACING = 1000, 700, 0.5  # pixels, µm/px
LESION_RED = 255
LESIONS = ((300, 200, 420, 330), (560, 400, 563, 404))  # left, top, right, bottom in level-0 pixels


def make_slide(
    folder: Path,
    name: str,
    lesions: Sequence[tuple[int, int, int, int]] = LESIONS,
    label: str | None = "mask",
    downsamples: Sequence[int] = (1, 3, 9),
    mask_downsamples: Sequence[int] = (1, 2),
) -> SlidePair:
    """Write a slide with rectangular lesions, seeded by its name. Its label is a "mask", an "xml" or None."""
    rng = np.random.default_rng(list(name.encode()))
    tissue = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (500, 350), (420, 300), 0, 0, 360, 1, -1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for left, top, right, bottom in lesions:
        mask[top:bottom, left:right] = 255
    image = np.full((HEIGHT, WIDTH, 3), 245, np.uint8)
    texture = rng.integers(0, 110, (HEIGHT, WIDTH, 3)) + np.array([120, 40, 110])
    image[tissue > 0] = texture[tissue > 0]
    image[mask > 0] = (texture * (0, 1, 1) + (LESION_RED, 0, 0))[mask > 0]
    slide, label_path = folder / f"{name}.tif", None
    write_levels(slide, [level(image, step) for step in downsamples], SPACING)
    if label == "mask":
        label_path = folder / f"{name}_mask.tif"
        write_levels(label_path, [level(mask, step) for step in mask_downsamples], SPACING)
    if label == "xml":
        label_path = folder / f"{name}.xml"
        label_path.write_text(asap_xml(lesions))
    return SlidePair(slide, label_path)


def level(image: np.ndarray, step: int) -> np.ndarray:
    """Return every step-th pixel, beginning with the one in the middle of the first step × step pixels."""
    return np.ascontiguousarray(image[step // 2 :: step, step // 2 :: step])


def asap_xml(rectangles: Sequence[tuple[int, int, int, int]], group: str = "Tumor") -> str:
    annotations = ""
    for left, top, right, bottom in rectangles:
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
        annotations += (
            f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}">'
            f"<Coordinates>{points}</Coordinates></Annotation>"
        )
    return f"<ASAP_Annotations><Annotations>{annotations}</Annotations></ASAP_Annotations>"
