"""Notes which pixel rows of a slide are predicted, so that a killed run goes on within the slide."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import astuple
from pathlib import Path

from prediction.grid import Grid
from prediction.raster import Raster
from prediction.store import DIGEST, PROGRESS, WORK, PredictionSettings
from prediction.uncertainty import Doubt
from samplers.slides.stored_slide import slide_name, state_of
from utils.files import output_errors, write_atomically

Band = tuple[int, int]  # pixel rows [first, stop)

EVERY_SECONDS = 10.0  # a note waits for the disk, so there are not more of them


class Progress:
    """The rasters of a slide's probabilities and classes, and a note of which of their pixel rows are finished.

    If it `doubts`, there are rasters of the doubt of an ensemble as well.

    Their names have a digest of all that decides what is in them: the slide's file, the settings and the patches. So
    what an earlier run with other options left is not taken, but removed. OutputError: they cannot be written.
    """

    def __init__(
        self, output: Path, slide: Path, settings: PredictionSettings, grid: Grid, doubts: bool = False
    ) -> None:
        decides = [*state_of(slide), settings.deciding(), astuple(grid.frame)]
        digest = hashlib.sha256(json.dumps(decides).encode() + grid.chosen.tobytes())
        if grid.tissue is not None:
            digest.update(grid.tissue.tobytes())
        name = f"{slide_name(slide)}.{digest.hexdigest()[:DIGEST]}"
        _remove_others(output / WORK, slide_name(slide), name)
        self._notes = output / WORK / f"{name}.rows"
        size = grid.frame.width, grid.frame.height
        with output_errors(self._notes):
            self._notes.mkdir(exist_ok=True)
        self.probability = Raster(output / WORK / f"{name}.probability", *size)
        self.classes = Raster(output / WORK / f"{name}.classes", *size)
        self.doubt: Doubt | None = None
        if doubts:
            kinds = (Raster(output / WORK / f"{name}.{kind}", *size) for kind in ("deviation", "entropy"))
            self.doubt = Doubt(*kinds)
        self._noted = time.monotonic()

    @property
    def rasters(self) -> list[Raster]:
        return [self.probability, self.classes, *(self.doubt or ())]

    def missing(self, band: Band) -> list[Band]:
        """Return the parts of a band that are not finished. Ranks may have shared the slide in another way before."""
        left = [band] if band[0] < band[1] else []
        for note in sorted(self._notes.glob("[0-9]*")):
            first, stop = int(note.name), int(note.read_text())
            cut = [part for a, b in left for part in ((a, min(b, first)), (max(a, stop), b))]
            left = [(a, b) for a, b in cut if a < b]
        return left

    def note(self, first: int, stop: int, last: bool) -> None:
        """Note that pixel rows [first, stop) are finished, unless it was done seconds ago. `last`: no more will follow.

        A band has one note, which grows. The rasters reach the disk before it: a node may die as well as a process.
        """
        if stop <= first or not (last or time.monotonic() - self._noted >= EVERY_SECONDS):
            return
        for raster in self.rasters:
            raster.sync()
        with output_errors(self._notes):
            write_atomically(self._notes / str(first), lambda path: path.write_text(str(stop)))
        self._noted = time.monotonic()

    def close(self) -> None:
        for raster in self.rasters:
            raster.close()

    def discard(self) -> None:
        """Close and delete the rasters, after the note that they are there."""
        shutil.rmtree(self._notes, ignore_errors=True)
        for raster in self.rasters:
            raster.discard()


def _remove_others(work: Path, slide: str, name: str) -> None:
    """Remove the progress of a slide that was made with other settings, or of another slide of its name."""
    for path in work.iterdir():
        if re.fullmatch(re.escape(slide) + PROGRESS, path.name) and not path.name.startswith(f"{name}."):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # all ranks that share the slide do so at once
            else:
                path.unlink(missing_ok=True)
