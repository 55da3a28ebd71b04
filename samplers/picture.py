"""Pictures of what is sampled: a thumbnail with the outlines of tissue and tumour and the drawn patches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from samplers.pairs.pairing import SlidePair
from samplers.patches import PatchInfo, SamplerConfig
from samplers.reader import OpenPair, overview
from samplers.tissue import contours

SIDE = 1024  # pixels of the picture's longer side, about
TISSUE, TUMOUR, PATCH, TUMOUR_PATCH = (0, 130, 60), (210, 0, 40), (20, 70, 220), (240, 150, 0)  # RGB


def draw_samples(
    folder: str | os.PathLike[str],
    pairs: Sequence[SlidePair],
    config: SamplerConfig,
    patches: Iterable[PatchInfo],
    max_slides: int = 16,
) -> list[Path]:
    """Writes `folder`/<slide>.png for the slides that the patches are of, at most `max_slides` of them.

    Returns the files. DataError or ReadError: a slide cannot be read.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    of_slide: dict[str, list[PatchInfo]] = {}
    for patch in patches:
        of_slide.setdefault(patch.slide, []).append(patch)
    written = []
    for pair in [pair for pair in pairs if pair.name in of_slide][:max_slides]:
        picture = picture_of(pair, config, of_slide[pair.name])
        path = Path(folder) / f"{pair.name}.png"
        # Not cv2.imwrite: it only returns False where a file cannot be written.
        path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
        written.append(path)
    return written


def picture_of(
    pair: SlidePair, config: SamplerConfig, patches: Sequence[PatchInfo], level: int | None = None
) -> np.ndarray:
    """Thumbnail with outlines and patches: uint8 RGB (h, w, 3). Regions as on `level`, of the config if None.

    Green: outline of the tissue, red: of the tumour, orange: patches with tumour, blue: others. DataError or
    ReadError: the slide cannot be read.
    """
    opened = OpenPair(pair, config)
    try:
        view = overview(opened, config.bb_downsample if level is None else level)
        picture = np.ascontiguousarray(opened.slide.thumbnail(SIDE))
        scale = picture.shape[1] / opened.slide.width  # picture pixels a level-0 pixel
    finally:
        opened.close()
    for mask, colour in ((view.tissue, TISSUE), (view.tumour, TUMOUR)):
        size = (picture.shape[1], picture.shape[0])
        enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        cv2.drawContours(picture, contours(enlarged), -1, colour, 2)
    for patch in patches:
        corners = [(patch.x_l0, patch.y_l0), (patch.x_l0 + patch.size_l0, patch.y_l0 + patch.size_l0)]
        first, last = ((round(x * scale), round(y * scale)) for x, y in corners)
        cv2.rectangle(picture, first, last, TUMOUR_PATCH if patch.tumour else PATCH, 2)
    return picture
