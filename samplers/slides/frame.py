"""The frame that positions on a slide refer to, and how a TIFF that was made of a slide says which one is meant.

Two pictures of a slide rarely have sizes of a whole ratio: 4000 pixels of 0.243 µm are 3888 of 0.25 µm. So predict.py
writes the size of the slide's level 0 and the downsample into its TIFFs, and whoever reads them need not guess.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samplers.slides.errors import DataError
from samplers.slides.slide import DEFAULT_SPACING, Slide
from samplers.slides.stored_file import StoredFile
from samplers.slides.tiff_directory import Page, is_tiff, read_directory

_KEY = "frame_of_slide"  # of the JSON object in the image description
_ROUNDING = 2  # pixels that a picture may lack at its end, plus a thousandth of its size


@dataclass(frozen=True)
class SlideFrame:
    """Level 0 of a slide, as far as positions need it. It has the names of `Slide`, so that it can stand for one."""

    path: Path  # the slide, or the file that describes it
    width: int
    height: int
    spacing: float
    spacing_known: bool
    origin: tuple[int, int] = (0, 0)  # of QuPath's coordinates
    downsamples: tuple[float, ...] = (1.0,)


def frame_of_file(path: Path, kind: Literal["image", "label"] = "image") -> SlideFrame:
    """Return the frame of a slide, or of a mask: the one that it describes, else its own level 0.

    DataError: it cannot be opened, or its description is wrong.
    """
    said = described_frame(path)
    if said is not None:
        return said[0]
    with Slide(path, kind) as slide:
        return SlideFrame(
            path,
            *(slide.width, slide.height, slide.spacing, slide.spacing_known),
            *(slide.origin, slide.downsamples),
        )


def description_of(slide: Slide, downsample: float) -> str:
    """Return the image description of a TIFF whose pixels are `downsample` level-0 pixels of a slide."""
    frame = {
        "level_0": [slide.width, slide.height],
        "downsample": downsample,
        "spacing": slide.spacing if slide.spacing_known else None,
        "bounds": list(slide.origin),
    }
    return json.dumps({_KEY: frame})


def described_frame(path: Path) -> tuple[SlideFrame, float] | None:
    """Return the frame and the downsample that a TIFF says it has, None if it says nothing.

    DataError: what it says cannot be understood, or does not fit its size, for example because it was resized.
    """
    if not path.is_file() or not is_tiff(path):
        return None
    file = StoredFile(path)
    try:
        page = read_directory(file)[0]
    except DataError:
        return None  # whoever opens the picture says so
    finally:
        file.close()
    return _frame_in(path, page)


def _frame_in(path: Path, page: Page) -> tuple[SlideFrame, float] | None:
    """Return what the first image of a TIFF says, see `described_frame`."""
    text, size = page.description, page.size
    if _KEY not in text:
        return None
    try:
        said = json.loads(text)[_KEY]
        (width, height), (x, y) = (map(int, said[key]) for key in ("level_0", "bounds"))
        downsample, spacing = float(said["downsample"]), said["spacing"]
        known = spacing is not None
        frame = SlideFrame(path, width, height, float(spacing) if known else DEFAULT_SPACING, known, (x, y))
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: its image description has a damaged {_KEY}: {error!r}") from error
    if not (math.isfinite(downsample) and downsample > 0) or not all(
        abs(full / downsample - pixels) <= _ROUNDING + pixels / 1000
        for full, pixels in zip((width, height), size)
    ):
        raise DataError(
            f"{path}: is {size[0]} × {size[1]} pixels, but says that it is a slide of {width} × {height} pixels at a "
            f"downsample of {downsample:g}; has it been cut or resized?"
        )
    return frame, downsample


def mask_scale(mask: Slide, slide: Slide | SlideFrame) -> float:
    """Return the level-0 pixels of the slide per pixel of the mask. Raises DataError if the sizes do not fit.

    A prediction says it. Any other mask has the slide's size, or that size shrunk and rounded. If both spacings are
    known, the factor must agree with their ratio; it is a whole number, one of the slide's downsamples, or that ratio.
    Otherwise it must be one of the slide's downsamples.
    """
    size, full = (mask.width, mask.height), (slide.width, slide.height)
    said = _frame_in(mask.path, mask.pages[0]) if mask.pages else None
    if said is not None:
        frame, downsample = said
        if (frame.width, frame.height) != full:
            raise DataError(
                f"{mask.path}: is of a slide of {frame.width} × {frame.height} pixels, but {slide.path} is {full[0]} × "
                f"{full[1]}"
            )
        return downsample
    if size == full:
        return 1.0
    candidates = sorted({float(round(full[0] / size[0])), *slide.downsamples})
    if mask.spacing_known and slide.spacing_known:  # last, because it is less exact
        candidates.append(mask.spacing / slide.spacing)
    for scale in (value for value in candidates if value > 1):
        fits = all(abs(f / scale - s) < 1 for f, s in zip(full, size))
        if mask.spacing_known and slide.spacing_known:
            fits &= abs(mask.spacing / slide.spacing / scale - 1) < 0.02
        else:
            fits &= scale in slide.downsamples
        if fits:
            return scale
    raise DataError(
        f"{mask.path}: is {size[0]} × {size[1]} pixels, but the slide {slide.path} is {full[0]} × {full[1]}"
    )
