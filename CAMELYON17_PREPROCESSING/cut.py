"""The work of the worker processes: find the places of a slide, cut patches at some of them, draw its picture."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.grid import Place, is_background, places
from CAMELYON17_PREPROCESSING.settings import Folders, PatchRow, PatchSettings, SourceSlide
from samplers.labels.label_map import IGNORED, shows_tumour
from samplers.pairs.checks import check_label, refuse_incomplete
from samplers.patches import PatchInfo, SamplerConfig, name_seed
from samplers.picture import picture_of
from samplers.reader import BadSlideError, OpenPair, PairReader, overview
from samplers.slides.errors import DataError
from utils.failures import ends_all
from utils.files import OutputError

T = TypeVar("T")
OVERVIEW_UM = 8.0  # µm/px of the thumbnail on which tissue is found

_PR_SET_PDEATHSIG = 1
_readers: dict[PatchSettings, PairReader] = {}


@dataclass
class Cut:
    """The patches that were cut at some places of a slide."""

    places: int = 0  # how many were looked at
    rows: dict[str, list[PatchRow]] = field(default_factory=lambda: {kind: [] for kind in store.KINDS})
    discarded: Counter[str] = field(default_factory=Counter)  # reason → patches

    def add(self, other: Cut) -> None:
        for kind, rows in other.rows.items():
            self.rows[kind] += rows
        self.discarded += other.discarded

    @property
    def patches(self) -> int:
        return sum(map(len, self.rows.values()))


def start_worker(parent: int) -> None:
    """Make a worker end with the process that started it, which cannot tell it to when it is killed."""
    cv2.setNumThreads(1)
    if hasattr(ctypes.CDLL(None), "prctl"):  # Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before the line above
        os._exit(1)


def _config(settings: PatchSettings) -> SamplerConfig:
    return SamplerConfig(
        "surf", settings.patch_size, batch_size=1, resolution=settings.spacing, label_map=settings.classes
    )


def _reader(settings: PatchSettings) -> PairReader:
    """Return the reader of this process, with the slides that it has open."""
    if settings not in _readers:
        _readers[settings] = PairReader(_config(settings))
    return _readers[settings]


def _level(opened: OpenPair) -> int:
    return opened.slide.level_at_least(OVERVIEW_UM / opened.slide.spacing)


class UnexpectedError(Exception):
    """An error of a slide that nobody expected, with its traceback as a text: not every exception can be pickled."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(kind, message, trace)
        self.kind, self.message, self.trace = kind, message, trace


def guarded(function: Callable[..., T], *arguments: Any) -> T:
    """Return function(*arguments). UnexpectedError in place of any error that is neither the user's nor ends all."""
    try:
        return function(*arguments)
    except (BadSlideError, OutputError):
        raise
    except Exception as error:
        if ends_all(error):
            raise
        raise UnexpectedError(type(error).__name__, str(error), traceback.format_exc()) from None


def plan(source: SourceSlide, settings: PatchSettings) -> tuple[list[Place], list[str]]:
    """Return the places of a slide that may give a patch, and a line for each part of the label that is left out.

    BadSlideError: the slide or its label cannot be used. A label without a usable annotation cannot: it does not mean
    that the slide is tumour-free. A slide without tissue was not looked at.
    """

    def of(opened: OpenPair) -> tuple[list[Place], list[str]]:
        refuse_incomplete(opened.slide)
        reasons = check_label(opened.label)
        if reasons:
            raise DataError("; ".join(reasons))
        view = overview(opened, _level(opened))
        if not view.tissue.any():
            raise DataError(f"{source.pair.slide}: no tissue was found on it, so no patch could be cut")
        size = (opened.slide.width, opened.slide.height)
        stride_l0 = settings.stride * opened.downsample
        # Without negatives only places with tumour are wanted.
        min_tissue = settings.min_tissue if settings.save_neg else 2.0
        found = places(view.tissue, view.tumour, view.cell, size, opened.size_l0, stride_l0, min_tissue)
        return found, opened.label.remarks

    found, left_out = _reader(settings).read(source.pair, of)
    if settings.max_patches is not None:  # chosen over the whole slide, and alike in each run
        rng = np.random.default_rng((settings.seed, name_seed(source.name)))
        found = [found[i] for i in rng.permutation(len(found))]
    return found, left_out


def cut(source: SourceSlide, settings: PatchSettings, folders: Folders, chunk: Sequence[Place]) -> Cut:
    """Write the patches at these places. BadSlideError: one cannot be read. OutputError: one cannot be written."""
    result, reader = Cut(len(chunk)), _reader(settings)
    # A mask of 0 and 255 cannot say that a pixel is not known.
    min_known = settings.min_known if settings.masks_hold_classes else 1.0
    limit, spacing = settings.max_patches, reader.read(source.pair, lambda opened: opened.spacing)
    full = {"positive": False, "negative": not settings.save_neg}
    for place in chunk:
        corner = place.x_l0, place.y_l0
        label = reader.read(source.pair, lambda opened: opened.read_label(*corner))  # noqa: B023
        tumour, known = shares(label)
        kind = "positive" if tumour else "negative"
        if not known or known < min_known:
            result.discarded["too little of it is known"] += 1
            continue
        if tumour and tumour < settings.min_tumor:
            result.discarded["less tumour than --min_tumor"] += 1
            continue
        if full[kind] or (not tumour and place.tissue < settings.min_tissue):
            continue
        name, folder = source.patch_name(*corner), folders.of_patches(kind, source.name, settings.layout)
        if not store.is_saved(folder, name, settings.output_format):  # by a run that was killed
            image = reader.read(source.pair, lambda opened: opened.read_image(*corner))  # noqa: B023
            if is_background(image):
                result.discarded["background" + (" with tumour" if tumour else "")] += 1
                continue
            mask = label if settings.masks_hold_classes else shows_tumour(label).astype(np.uint8) * 255
            store.save_patch(folder, name, image, mask, settings.output_format, spacing)
        where = (name, source.name, source.patient, source.center, *corner)
        size = settings.patch_size, round(spacing, 6)
        row = PatchRow(*where, *size, round(tumour, 6), place.tissue, round(known, 6))
        result.rows[kind].append(row)
        full[kind] = full[kind] or len(result.rows[kind]) == limit
        if all(full.values()):
            break
    return result


def shares(label: np.ndarray) -> tuple[float, float]:
    """Return the share of tumour in the known pixels of uint8 classes, and the share of known pixels."""
    known = np.count_nonzero(label != IGNORED)
    return (np.count_nonzero(shows_tumour(label)) / known if known else 0.0), known / label.size


def draw(
    source: SourceSlide, settings: PatchSettings, folders: Folders, rows: dict[str, list[PatchRow]]
) -> None:
    """Draw slides/<slide>.png: outlines of tissue and tumour and the patches that were cut, on a thumbnail.

    BadSlideError: the slide cannot be read. OutputError: the picture cannot be written.
    """
    size_l0 = _reader(settings).geometry(source.pair)[0]
    patches = [
        PatchInfo(source.name, row.x, row.y, size_l0, kind == "positive")
        for kind in ("negative", "positive")  # the second is drawn over the first
        for row in rows[kind]
    ]
    level = _reader(settings).read(source.pair, _level)
    try:
        picture = picture_of(source.pair, _config(settings), patches, level)
    except (DataError, OSError) as error:
        raise BadSlideError(source.pair, str(error)) from error
    path = folders.positive / "slides" / f"{source.name}.png"
    store.write(path, store.encode(picture, "png", 1.0))
