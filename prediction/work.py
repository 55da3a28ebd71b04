"""Predicts slide after slide, on one rank or on all, and writes a slide's files while the next one is predicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evaluation.lesions import node_label
from prediction import store
from prediction.grid import Grid, frame_of, grown
from prediction.lesions import cells_of, lesions_of, remove_small, slide_probability
from prediction.progress import Progress
from prediction.store import PredictionSettings
from prediction.stream import Canvas, predict_band
from prediction.uncertainty import of_lesions, regions_of, write_look_here
from prediction.write import write_asap, write_geojson, write_lesions, write_overlay, write_tiff
from samplers.pairs.checks import decode_samples, open_whole
from samplers.reader import tissue_of, trim_memory
from samplers.slides.errors import DataError
from samplers.slides.frame import description_of
from samplers.slides.slide import Slide
from samplers.slides.stored_slide import slide_name, state_of
from utils.failures import failure_of
from utils.files import OutputError, output_errors
from utils.ranks.single import Ranks

# Called with the slides (a share of one) and the patches that were done.
Advance = Callable[[float, int], None]


class PatchModel(Protocol):
    """A model of patches: uint8 RGB (B, size, size, 3) → float32 (B, planes, size, size), as `Predictor` is one.

    If it `deviates` there is one more plane, with the standard deviation between the models that it consists of.
    """

    planes: int
    deviates: bool

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


def grid_of(slide: Slide, settings: PredictionSettings) -> Grid:
    """Return the patches of a slide, and its tissue, which is what is predicted. DataError: see `frame_of`."""
    frame = frame_of(slide, settings.resolution)
    tissue, cell = None, (1.0, 1.0)
    if settings.tissue_only:
        _, found, cell = tissue_of(slide, settings.bb_downsample)
        tissue = grown(found, slide.spacing * cell[0])
    return Grid(frame, settings.img_size, settings.overlap, tissue, cell)


class Opened:
    """A slide that is being predicted, with its grid and what is predicted of it so far.

    DataError: the slide cannot be used. OutputError: the progress cannot be written.
    """

    def __init__(self, path: Path, output: Path, settings: PredictionSettings, doubts: bool = False) -> None:
        self.name = slide_name(path)
        self.slide = open_whole(path)
        try:
            decode_samples(self.slide)
            self.grid = grid_of(self.slide, settings)
            if not self.grid.chosen.any():
                raise DataError(
                    f"{path}: no tissue was found on it, so it was not looked at; --no-tissue_only predicts all of it"
                )
            self.progress = Progress(output, path, settings, self.grid, doubts)
        except BaseException:
            self.slide.close()
            raise

    def close(self) -> None:
        self.slide.close()
        self.progress.close()

    def discard(self) -> None:
        """Close the slide and delete what is predicted of it."""
        self.slide.close()
        self.progress.discard()


@dataclass
class PredictionOutcome:
    """The work that a rank has done."""

    slides: int = 0
    patches: int = 0  # with those of slides that turned out to be bad
    bad: dict[str, str] = field(default_factory=dict)  # slide → reason
    error: str = ""  # the file that could not be written, for which the rank has stopped


@dataclass
class Worker:
    """Predicts slides. The ranks of a `team` share each slide by bands of pixel rows."""

    output: Path
    settings: PredictionSettings
    predictor: PatchModel
    names: Sequence[str]  # of the classes from 1 on
    team: Ranks
    advance: Advance
    outlines: bool = True  # whether to write them for QuPath and ASAP; noise has very many
    outcome: PredictionOutcome = field(default_factory=PredictionOutcome)
    stopped: bool = False  # a rank of the team cannot write, so all have stopped at the same slide

    def run(self, paths: Iterable[Path]) -> PredictionOutcome:
        """Predict the slides. Collective over the team."""
        pending: Future[None] | None = None
        with ThreadPoolExecutor(1) as finisher:
            for number, path in enumerate(paths):
                opened, seconds = self._predict(path)
                if pending is not None:
                    pending.result()
                    pending = None
                if self.stopped:
                    break
                if opened is not None and self.team.rank == number % self.team.size:
                    pending = finisher.submit(self._finish, opened, seconds)
                elif opened is not None:
                    opened.close()
        if pending is not None:
            pending.result()
        return self.outcome

    def _predict(self, path: Path) -> tuple[Opened | None, float]:
        """Return the slide, all of it predicted, or None if it is bad, and the seconds this took. Collective."""
        start, opened, bad = time.monotonic(), None, ""
        error = (
            self.outcome.error
        )  # from writing an earlier slide's files; the rest of the team does not know it yet
        try:
            if not error:
                opened = Opened(path, self.output, self.settings, self.predictor.deviates)
                self._predict_band(opened)
        except OutputError as failure:
            error = str(failure)
        except Exception as failure:
            bad = _reason_of(failure, path)
        found = self.team.gather((bad, error))
        bad, error = (next((part[i] for part in found if part[i]), "") for i in (0, 1))
        if not bad and not error:
            return opened, time.monotonic() - start
        if opened is not None:
            opened.discard() if bad else opened.close()  # with more room, the same command goes on
        self.stopped = bool(error)
        if self.team.is_first:
            self._note(slide_name(path), bad, error)
        return None, 0.0

    def _predict_band(self, opened: Opened) -> None:
        grid, settings = opened.grid, self.settings
        bands = opened.progress.missing(grid.bands(self.team.size)[self.team.rank])
        patches = sum(int(grid.chosen[slice(*grid.rows_of(band))].sum()) for band in bands)

        def advance(count: int) -> None:
            self.outcome.patches += count
            self.advance(count / patches, count)

        for band in bands:
            canvas = Canvas(grid, band, self.predictor.planes, settings.threshold, opened.progress)
            predict_band(opened.slide, grid, band, self.predictor, settings.batch_size, canvas, advance)
        if not patches:
            self.advance(1.0, 0)

    def _note(self, name: str, bad: str, error: str) -> None:
        """Note that a slide has failed and delete its files. One rank of the team calls this."""
        if bad:
            self.outcome.bad[name] = bad
        self.outcome.error = self.outcome.error or error
        store.remove(self.output, name)

    def _finish(self, opened: Opened, seconds: float) -> None:
        """Write the files of a predicted slide. Runs in a thread, so a failure is noted instead of raised."""
        start, leave = time.monotonic(), opened.discard
        try:
            record = write_files(opened, self.output, self.settings, self.names, self.outlines)
            record["seconds"] = round(seconds + time.monotonic() - start, 1)
            store.finish(self.output, opened.name, record, self.outlines, self.predictor.deviates)
            self.outcome.slides += 1
        except OutputError as failure:
            self._note(opened.name, "", str(failure))
            leave = opened.close  # what is predicted stays: with more room, the same command only writes it
        except Exception as failure:
            self._note(opened.name, _reason_of(failure, opened.slide.path), "")
        finally:
            leave()
            trim_memory()


def _reason_of(error: Exception, slide: Path) -> str:
    """Return why a slide has failed. Raises what is not the slide's fault alone: the memory is used up."""
    return str(error) if isinstance(error, DataError) else failure_of(error, f"prediction of {slide}")


def write_files(
    opened: Opened, output: Path, settings: PredictionSettings, names: Sequence[str], outlines: bool = True
) -> dict[str, Any]:
    """Write all files of a slide into the work folder, those of `outlines` if asked, and return its record.

    ReadError: the slide cannot be read. OutputError: a file cannot be written.
    """
    frame = opened.grid.frame
    probability, classes = opened.progress.probability, opened.progress.classes
    paths = {path.name[len(opened.name) :]: output / store.WORK / path.name
             for path in store.files_of(output, opened.name)}  # fmt: skip
    cells = cells_of(probability, classes)
    lesions, numbers = lesions_of(cells, frame, probability, classes, settings.min_lesion_mm)
    remove_small(cells, numbers, classes)
    description = description_of(opened.slide, frame.downsample)
    with output_errors(output):
        write_tiff(paths["_probability.tif"], probability, frame.spacing, False, description)
        write_tiff(paths["_prediction.tif"], classes, frame.spacing, True, description)
        doubt, doubts = opened.progress.doubt, []
        if doubt is not None:
            doubts = of_lesions(doubt, numbers, cells.side, len(lesions))
            write_tiff(paths["_disagreement.tif"], doubt.deviation, frame.spacing, False, description)
            write_tiff(paths["_entropy.tif"], doubt.entropy, frame.spacing, False, description)
            regions = regions_of(doubt, frame)
            write_look_here(paths["_look_here.geojson"], regions, frame.downsample, opened.slide.origin)
        if outlines:
            write_geojson(paths[".geojson"], lesions, names, frame.downsample, opened.slide.origin, doubts)
            write_asap(paths[".xml"], lesions, names, frame.downsample)
        write_lesions(paths[".csv"], lesions, frame)
        write_overlay(paths["_overlay.png"], opened.slide, cells, numbers)
    diameter = max((lesion.diameter for lesion in lesions), default=0.0)
    return {
        "slide": opened.name,
        "path": str(opened.slide.path.absolute()),
        "state": state_of(opened.slide.path),
        "probability": round(slide_probability(cells, frame, settings.min_lesion_mm), 6),
        "diameter_mm": round(diameter, 6),
        "node_label": node_label(diameter),
        "area_mm2": round(sum(lesion.area for lesion in lesions), 6),
        "lesions": len(lesions),
        "patches": int(opened.grid.chosen.sum()),
        "settings": asdict(settings),
    }
