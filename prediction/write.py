"""The files of a slide: pyramids, outlines, a picture to look at, the challenge's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyvips

from prediction.grid import Frame
from prediction.lesions import Cells, Lesion
from prediction.raster import Raster
from samplers.slide import Slide
from utils.files import OutputError
from utils.pictures import OUTLINE_PREDICTION, draw_outline

TILE = 512  # pixels a side, as ASAP writes them
OVERLAY = 2048  # pixels of the longer side
_OPACITY = 0.6  # of the heat map where the probability is 1


def write_tiff(path: Path, raster: Raster, spacing: float, shrink: str) -> None:
    """Pyramidal tiled BigTIFF, one band, deflate, with its spacing (µm/px); streamed by libvips.

    shrink: how a level is made from the one before, libvips' "mean" or "mode". OutputError: it cannot be written.
    """
    per_mm = 1000 / spacing
    try:
        image = pyvips.Image.rawload(str(raster.path), raster.width, raster.height, 1)
        image = image.copy(interpretation="b-w", xres=per_mm, yres=per_mm)
        size = {"tile": True, "tile_width": TILE, "tile_height": TILE, "pyramid": True, "bigtiff": True}
        image.tiffsave(str(path), compression="deflate", resunit="cm", region_shrink=shrink, **size)
    except pyvips.Error as error:
        raise OutputError(f"{path} cannot be written: {' '.join(str(error).split())}") from error


def write_overlay(path: Path, slide: Slide, cells: Cells, numbers: np.ndarray) -> None:
    """PNG of at most OVERLAY pixels: the slide, probability as heat, outlines of the lesions in yellow.

    numbers: int32 (h, w), of the lesions, as of the cells. ReadError: the slide cannot be read.
    """
    picture = slide.thumbnail(OVERLAY)
    size = (picture.shape[1], picture.shape[0])
    shrinks = cells.mean.shape[0] > size[1]
    heat = cv2.resize(cells.mean, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.uint8(heat * 255), cv2.COLORMAP_TURBO)[:, :, ::-1]
    opacity = (_OPACITY * np.sqrt(heat))[:, :, None]
    picture = (picture * (1 - opacity) + colours * opacity).astype(np.uint8)
    inside = cv2.resize((numbers > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    picture = draw_outline(picture, np.greater(inside, 0), OUTLINE_PREDICTION)
    path.write_bytes(cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes())


def write_lesions(path: Path, lesions: Sequence[Lesion], frame: Frame) -> None:
    """`confidence,X,Y` a line, without a header as the organisers' program wants it; empty if there are none."""
    scale = frame.downsample
    lines = [
        f"{lesion.confidence:.6f},{int((lesion.x + 0.5) * scale)},{int((lesion.y + 0.5) * scale)}\n"
        for lesion in sorted(lesions, key=lambda lesion: -lesion.confidence)
    ]
    path.write_text("".join(lines))
