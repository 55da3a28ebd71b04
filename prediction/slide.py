"""A slide from patches to files: reading, the network and the blending overlap; ranks share the rows."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from evaluation.lesions import find_lesions, node_label
from prediction import files
from prediction.model import Predictor
from prediction.outlines import TILE, asap_xml, find_areas, geojson, group_names
from prediction.tiling import Blend, RawMap, Row, bands, grid
from samplers.checks import check_pair
from samplers.dataset import SlidePair
from samplers.label_map import LabelMap
from samplers.patches import SamplerConfig
from samplers.reader import BadSlideError, OpenPair, PairReader, overview

MAP_UM = 8.0  # µm/px at which lesions are told apart
READERS = 2  # threads
MOST_ROUNDS = 4  # batches that are read ahead

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Settings:
    """How slides are predicted. spacing: µm/px of the patches, None: level 0."""

    img_size: int
    batch_size: int
    overlap: float
    spacing: float | None
    tissue_only: bool
    threshold: float
    min_lesion_um: float
    bb_downsample: int
    label_map: LabelMap

    @property
    def stride(self) -> int:
        return max(1, round(self.img_size * (1 - self.overlap)))


@dataclass(frozen=True)
class Plan:
    """Where a slide is predicted. width, height: of the output, pixels of `spacing` µm/px."""

    rows: list[Row]
    width: int
    height: int
    spacing: float
    downsample: float  # level-0 pixels a pixel of the output

    @property
    def patches(self) -> int:
        return sum(len(row.xs) for row in self.rows)


class SlidePredictor:
    """Predicts slides with one model."""

    def __init__(self, predict: Predictor, classes: int, settings: Settings, output: Path) -> None:
        self.predict, self.classes, self.settings, self.output = predict, classes, settings, output
        self.config = SamplerConfig(
            "surf", settings.img_size, settings.batch_size, bb_downsample=settings.bb_downsample,
            resolution=settings.spacing,
        )  # fmt: skip
        self.local = threading.local()

    def plan(self, path: Path) -> Plan:
        """BadSlideError: the slide cannot be read, is smaller than a patch or has no tissue."""
        pair = SlidePair(path, None)
        settings = self.settings
        reasons = check_pair(path, None, LabelMap(), settings.img_size, settings.spacing)
        if reasons:
            raise BadSlideError(pair, "; ".join(reasons))

        def of(opened: OpenPair) -> Plan:
            downsample = 1.0 if opened.native else opened.downsample
            view = overview(opened, settings.bb_downsample) if settings.tissue_only else None
            width, height = (int(side / downsample) for side in (opened.slide.width, opened.slide.height))
            rows = grid(
                width, height, settings.img_size, settings.stride, downsample,
                None if view is None else view.tissue, (1.0, 1.0) if view is None else view.cell,
            )  # fmt: skip
            return Plan(rows, width, height, opened.spacing, downsample)

        return self._reader().read(pair, of)

    def _reader(self) -> PairReader:
        """Of this thread."""
        if not hasattr(self.local, "reader"):
            self.local.reader = PairReader(self.config)
        reader: PairReader = self.local.reader
        return reader

    def run(self, path: Path, plan: Plan, band: int, of_bands: int, advance: Callable[[int], None]) -> None:
        """Predicts a band of the slide's rows into the raw maps, which are there. BadSlideError, OSError.

        Each output row has the same patches, in the same order and the same batches, whatever the bands are:
        a batch has patches of one row of the grid. advance(patches): called for each batch.
        """
        first, end = bands(plan.rows, plan.height, of_bands)[band]
        size = self.settings.img_size
        rows = [row for row in plan.rows if row.y < end and row.y + size > first]
        if first == end or not rows:
            return
        maps = files.raw_maps(self.output, path.stem, plan.width, plan.height)
        blend = Blend(size, self.classes, self.settings.threshold, *maps, (first, end))
        step = self.settings.batch_size
        batches = [(row.y, row.xs[i : i + step]) for row in rows for i in range(0, len(row.xs), step)]
        pair = SlidePair(path, None)

        def read(batch: tuple[int, list[int]]) -> np.ndarray:
            y, xs = batch
            corners = [(round(x * plan.downsample), round(y * plan.downsample)) for x in xs]
            return np.stack(
                [self._reader().read(pair, lambda opened: opened.read_image(*corner)) for corner in corners]  # noqa: B023
            )

        def add(y: int, xs: list[int], found: np.ndarray) -> None:
            for x, probabilities in zip(xs, found):
                blend.add(x, y, probabilities)

        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as writer:
            adding: Future[None] | None = None
            for (y, xs), images in zip(batches, ahead(readers, read, batches)):
                found = self.predict(images)
                if adding is not None:
                    adding.result()
                adding = writer.submit(add, y, xs, found)
                advance(len(xs))
            if adding is not None:
                adding.result()
        blend.finish()

    def finish(self, path: Path, plan: Plan, seconds: float) -> None:
        """All files of a slide out of the raw maps, its record last. OSError: they cannot be written."""
        start = time.monotonic()
        probability, prediction = files.raw_maps(self.output, path.stem, plan.width, plan.height)
        name, output, settings = path.stem, self.output, self.settings
        areas = find_areas(prediction, settings.min_lesion_um / plan.spacing)
        cell = max(1, round(MAP_UM / plan.spacing))
        small, pixels = low_map(probability, prediction, cell)
        lesions, _ = find_lesions(
            small, plan.spacing * cell, plan.downsample * cell, settings.threshold,
            min_diameter=settings.min_lesion_um,
        )  # fmt: skip
        names = group_names(settings.label_map)
        files.write_tiff(output / f"{name}_probability.tif", probability, plan.spacing, "mean")
        files.write_tiff(output / f"{name}_prediction.tif", prediction, plan.spacing, "nearest")
        files.write_bytes(output / f"{name}.xml", asap_xml(areas, names, plan.downsample))
        files.write_bytes(output / f"{name}.geojson", geojson(areas, names, plan.downsample))
        picture = self._reader().read(
            SlidePair(path, None), lambda opened: files.overlay(opened.slide, small, areas, plan.downsample)
        )
        files.write_bytes(output / f"{name}_overlay.png", files.png(picture))
        files.write_bytes(output / "lesions" / f"{name}.csv", files.lesion_table(lesions))
        for raw in files.raw_files(output, name):
            raw.unlink()
        largest = max((lesion.diameter for lesion in lesions), default=0.0) / 1000
        record = {
            "slide": name,
            "probability": slide_probability(small, plan.spacing * cell, settings.min_lesion_um),
            "largest_lesion_mm": round(largest, 4),
            "node_label": node_label(largest),
            "tumour_area_mm2": round(pixels * (plan.spacing / 1000) ** 2, 6),
            "lesions": len(lesions),
            "seconds": round(seconds + time.monotonic() - start, 2),
        }
        files.write_bytes(files.record_of(output, name), (json.dumps(record) + "\n").encode())


def ahead(pool: ThreadPoolExecutor, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """function(item) of all, in their order, a few of them computed before they are asked for."""
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= MOST_ROUNDS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def low_map(probability: RawMap, prediction: RawMap, cell: int) -> tuple[np.ndarray, int]:
    """The probability at a lower magnification, mean of cell × cell pixels (fewer at the right and lower edge):
    uint8 (h, w); and how many pixels are predicted as another class than 0.
    """
    height, width = -(-probability.height // cell), -(-probability.width // cell)
    small, pixels = np.zeros((height, width), np.uint8), 0
    side = max(1, TILE // cell) * cell
    for y in range(0, probability.height, side):
        for x in range(0, probability.width, side):
            tile = probability.read(x, y, side, side)
            if not tile.any():
                continue
            pixels += int(np.count_nonzero(prediction.read(x, y, side, side)))
            below, right = -tile.shape[0] % cell, -tile.shape[1] % cell
            tile = np.pad(tile, ((0, below), (0, right)), mode="edge")
            part = cv2.resize(
                tile, (tile.shape[1] // cell, tile.shape[0] // cell), interpolation=cv2.INTER_AREA
            )
            small[y // cell : y // cell + part.shape[0], x // cell : x // cell + part.shape[1]] = part
    return small, pixels


def slide_probability(small: np.ndarray, spacing: float, min_lesion_um: float) -> float:
    """The mean in that square of the smallest lesion's side where it is highest: one pixel alone is noise."""
    side = min(max(1, round(min_lesion_um / spacing)), *small.shape)
    mean: Any = cv2.blur(small.astype(np.float32), (side, side), borderType=cv2.BORDER_REPLICATE)
    return round(float(mean.max()) / 255, 6)
