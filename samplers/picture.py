"""Draws pictures of the sampling: a thumbnail with the outlines of tissue and tumour and the drawn patches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from samplers.pairs.pairing import SlidePair
from samplers.patches import PatchInfo, SamplerConfig
from samplers.reader import OpenPair, overview
from samplers.slides.errors import DataError
from samplers.tissue import contours
from utils.failures import reason_of
from utils.pictures import hatch

log = logging.getLogger(__name__)

SIDE = 1024  # pixels of the longer side of a picture, approximately
TISSUE, TUMOUR, PATCH, TUMOUR_PATCH = (0, 130, 60), (210, 0, 40), (20, 70, 220), (240, 150, 0)  # RGB


def draw_samples(
    folder: str | os.PathLike[str],
    pairs: Sequence[SlidePair],
    config: SamplerConfig,
    patches: Iterable[PatchInfo],
    max_slides: int = 16,
) -> list[Path]:
    """Write `folder`/<slide>.png for the slides that the patches come from, at most `max_slides` of them.

    Returns the files. A slide that cannot be read is left out with a warning, as in training: a run does not end for
    want of a picture. OSError: a file cannot be written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    of_slide: dict[str, list[PatchInfo]] = {}
    for patch in patches:
        of_slide.setdefault(patch.slide, []).append(patch)
    written = []
    for pair in [pair for pair in pairs if pair.name in of_slide][:max_slides]:
        try:
            picture = picture_of(pair, config, of_slide[pair.name])
        except Exception as error:
            reason = reason_of(error, f"picture of {pair.slide}", (DataError, OSError))
            log.warning("no picture of %s: %s", pair.name, reason)
            continue
        path = Path(folder) / f"{pair.name}.png"
        # Not cv2.imwrite, which only returns False if the file cannot be written.
        path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
        written.append(path)
    return written


def picture_of(
    pair: SlidePair, config: SamplerConfig, patches: Sequence[PatchInfo], level: int | None = None
) -> np.ndarray:
    """Return a thumbnail with outlines and patches: uint8 RGB (h, w, 3).

    The outlines are green for tissue and red for tumour, found on `level`; None means the config's. What is not known
    is hatched. Patches are orange with tumour and blue without. Raises DataError if the slide cannot be read.
    """
    opened = OpenPair(pair, config)
    try:
        view = overview(opened, config.bb_downsample if level is None else level)
        picture = np.ascontiguousarray(opened.slide.thumbnail(SIDE))
        scale = picture.shape[1] / opened.slide.width  # pixels of the picture per level-0 pixel
    finally:
        opened.close()

    def enlarged(mask: np.ndarray) -> np.ndarray:
        size = (picture.shape[1], picture.shape[0])
        return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST))

    picture = hatch(picture, enlarged(~view.known) > 0)
    for mask, colour in ((view.tissue, TISSUE), (view.tumour, TUMOUR)):
        cv2.drawContours(picture, contours(enlarged(mask)), -1, colour, 2)
    for patch in patches:
        corners = [(patch.x_l0, patch.y_l0), (patch.x_l0 + patch.size_l0, patch.y_l0 + patch.size_l0)]
        first, last = ((round(x * scale), round(y * scale)) for x, y in corners)
        cv2.rectangle(picture, first, last, TUMOUR_PATCH if patch.tumour else PATCH, 2)
    return picture
