"""Looks at the files of a DICOM slide before OpenSlide opens them.

OpenSlide passes over files of other series, other kinds of images and files that it cannot read. So it would read a
slide that lacks its largest level as a smaller slide, on which no outline is where it was drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from pydicom import config
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage

from samplers.slides.errors import DataError

_LAST = 0x00480007  # TotalPixelMatrixRows. What follows may be large: colour profile, places of the tiles, pixels.
_PYRAMID = "VOLUME"  # the third value of ImageType; others are the slide's label or pictures of all of it


# Otherwise it warns of each value in the files that breaks the standard's rules.
config.settings.reading_validation_mode = config.IGNORE


# Of an open slide, measured: OpenSlide keeps headers and two blocks of 8 kB of each file, and the places of its tiles.
# It closes the files between reads.
_FILE_BYTES, _TILE_BYTES = 64 << 10, 8


class Level(NamedTuple):
    """A file with (a part of) a level of a slide, as its header describes it."""

    file: Path
    series: str
    size: tuple[int, int]  # width, height
    tiles: int  # in this file
    is_resampled: bool  # made of a larger level


def levels_of_folder(folder: Path, files: Sequence[Path]) -> list[Level]:
    """Return the levels of a slide, the largest first. Raises DataError if the files are not those of one slide."""
    found = [level for file in files if (level := _level_of(folder, file)) is not None]
    series = {level.series for level in found}
    if not found:
        raise DataError(f"{folder}: has no file with a level of a slide (ImageType VOLUME)")
    if len(series) > 1:
        raise DataError(
            f"{folder}: has files of {len(series)} DICOM series ({', '.join(sorted(series))}), but a slide is one "
            "series; make a folder for each"
        )
    return sorted(found, key=lambda level: (-level.size[0], level.file))


def held_bytes(levels: Sequence[Level]) -> int:
    """Return the bytes that the open slide keeps in memory, estimated."""
    return sum(_FILE_BYTES + _TILE_BYTES * level.tiles for level in levels)


def refuse_unread(folder: Path, levels: Sequence[Level], sizes: Collection[tuple[int, int]]) -> None:
    """Raise DataError if OpenSlide has passed over the file of a level. `sizes` are of the levels that it reads."""
    for level in levels:
        if level.size not in sizes:
            raise DataError(f"{folder}: {level.file.name} cannot be read: it is truncated or damaged")


def resampled_remark(folder: Path, levels: Sequence[Level]) -> str | None:
    """Return what is said of a slide whose largest level may be missing, None if it is there.

    It is no error: the standard does not ask for the word NONE, and there are whole slides without it.
    """
    if not levels[0].is_resampled:
        return None
    width, height = levels[0].size
    return (
        f"{folder}: its largest level ({width} × {height} pixels) calls itself resampled: if the file of a larger one "
        "is missing, outlines do not fit"
    )


def _level_of(folder: Path, file: Path) -> Level | None:
    """Return what a file says of its level, None if it is another picture of the slide."""
    try:
        with file.open("rb") as stream:
            header = read_partial(stream, stop_when=_is_enough)
    except InvalidDicomError as error:
        raise DataError(f"{folder}: {file.name} is no DICOM file") from error
    except OSError as error:
        raise DataError(f"{folder}: {file.name} cannot be read: {error}") from error
    except Exception as error:  # of damaged headers there are many kinds
        raise DataError(f"{folder}: {file.name} is truncated or damaged: {error!r}") from error
    kind = str(header.file_meta.get("MediaStorageSOPClassUID", ""))
    if kind and kind != VLWholeSlideMicroscopyImageStorage:
        raise DataError(f"{folder}: {file.name} is no whole slide but {UID(kind).name}")
    for keyword in ("ImageType", "SeriesInstanceUID", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"):
        if keyword not in header:
            raise DataError(f"{folder}: {file.name} has no {keyword}: it is truncated or damaged")
    try:
        kinds = list(header.ImageType)
        size = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
        tiles = int(header.get("NumberOfFrames", 1))
    except Exception as error:  # pydicom understands a value when it is asked for
        raise DataError(f"{folder}: {file.name} is damaged: {error}") from error
    if kinds[2:3] != [_PYRAMID]:
        return None
    return Level(file, str(header.SeriesInstanceUID), size, tiles, kinds[3:4] == ["RESAMPLED"])


def _is_enough(tag: BaseTag, kind: str | None, length: int) -> bool:
    return tag > _LAST
