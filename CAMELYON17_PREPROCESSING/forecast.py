"""Estimates from a few patches of a few slides how many files the preprocessing will write, and how large they are."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.cut import UnexpectedError, cut, guarded, plan
from CAMELYON17_PREPROCESSING.settings import Folders, PatchSettings, SourceSlide
from samplers.reader import BadSlideError
from utils.files import OutputError

SLIDES, PATCHES = 8, 4  # that are looked at, and of each of these slides cut


@dataclass(frozen=True)
class Forecast:
    """What will be written, and from how many slides and patches it is estimated."""

    patches: float = 0.0
    files: float = 0.0
    bytes: float = 0.0
    slides_seen: int = 0
    patches_seen: int = 0

    def __add__(self, other: Forecast) -> Forecast:
        """Return the forecast of two ranks."""
        mine, theirs = vars(self).values(), vars(other).values()
        return Forecast(*(a + b for a, b in zip(mine, theirs)))

    def said(self, folder: Path) -> list[str]:
        """Return a line for the log, and one more if there is not that much room in `folder`."""
        if not self.patches_seen:
            return []
        free = shutil.disk_usage(folder).free
        lines = [
            f"estimated from {self.patches_seen} patches of {self.slides_seen} slides: {self.patches:,.0f} patches, "
            f"{self.files:,.0f} files, {self.bytes / 1e9:,.3g} GB; {free / 1e9:,.3g} GB are free"
        ]
        if self.bytes > free:
            lines.append(f"warning: {folder} will probably be full before all patches are written")
        return lines


def forecast(sources: Sequence[SourceSlide], settings: PatchSettings) -> Forecast:
    """Return the forecast for these slides, of which some are looked at. One that cannot be used counts as the others.

    Their patches are written to a temporary folder, as they will be in the end.
    """
    found = Forecast()
    if not sources:
        return found
    for source in sources[:: -(-len(sources) // SLIDES)]:
        try:
            found += _of_slide(source, settings)
        except (BadSlideError, UnexpectedError, OutputError):  # the slide's own turn says why
            continue
    if not found.slides_seen:
        return found
    scale = len(sources) / found.slides_seen
    return replace(found, patches=found.patches * scale, files=found.files * scale, bytes=found.bytes * scale)


def _of_slide(source: SourceSlide, settings: PatchSettings) -> Forecast:
    places, _ = guarded(plan, source, settings)
    some = places[:: -(-len(places) // PATCHES)] if places else []
    with tempfile.TemporaryDirectory() as name:
        folders = Folders(Path(name) / "positive", Path(name) / "negative")
        made = guarded(cut, source, replace(settings, max_patches=None), folders, some)
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
    patches = 0.0
    for kind in store.KINDS:
        expected = len(places) * len(made.rows[kind]) / max(1, len(some))
        patches += expected if settings.max_patches is None else min(expected, settings.max_patches)
    files = 2 * patches + 1 + settings.save_png  # the record, and the picture
    return Forecast(patches, files, size * patches / max(1, made.patches), 1, made.patches)
