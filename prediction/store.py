"""The files of an output folder: of each slide, a record that says it is finished, and a table of all.

<slide>_probability.tif, <slide>_prediction.tif, <slide>_overlay.png, <slide>.geojson, <slide>.xml
lesions/<slide>.csv       confidence,X,Y
slides/<slide>.json       the record, written last: a slide without one is done again
slides.csv                a line a slide
prediction.json           model and options of all of them
.work/                    what is not finished
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.files import OutputError, differences, write_atomically

WORK, RECORDS, LESIONS = ".work", "slides", "lesions"
COLUMNS = ("slide", "probability", "diameter_mm", "node_label", "area_mm2", "seconds")


@dataclass(frozen=True)
class PredictionSettings:
    """What the predictions of a folder have in common."""

    model: str  # of `ModelSource.identity`
    img_size: int
    overlap: float
    batch_size: int
    resolution: float | None  # µm/px, None: level 0
    tissue_only: bool
    bb_downsample: int
    tta: bool
    mixed_precision: str | None  # None: as exported
    threshold: float  # of two classes; of more the most probable is taken
    min_lesion_mm: float


def files_of(output: Path, slide: str) -> list[Path]:
    """All files of a slide but the record."""
    names = ("_probability.tif", "_prediction.tif", "_overlay.png", ".geojson", ".xml")
    return [*(output / f"{slide}{name}" for name in names), output / LESIONS / f"{slide}.csv"]


def record_of(output: Path, slide: str) -> Path:
    return output / RECORDS / f"{slide}.json"


def prepare(output: Path, settings: PredictionSettings) -> None:
    """Makes the folder. UserError: it has slides of another model or other options. Rank 0 alone calls it."""
    note = output / "prediction.json"
    if note.exists() and any((output / RECORDS).glob("*.json")):
        changed = differences(_read(note), asdict(settings))
        if changed:
            raise UserError(
                f"{output} holds predictions of another model or other options: {', '.join(changed)}. Remove it, "
                "or name another --output"
            )
    with output_errors(output):
        shutil.rmtree(output / WORK, ignore_errors=True)
        for folder in (WORK, RECORDS, LESIONS):
            (output / folder).mkdir(parents=True, exist_ok=True)
        write_atomically(note, lambda path: path.write_text(json.dumps(asdict(settings), indent=2) + "\n"))


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """OSError → OutputError that names the path."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): remove it") from error


def finish(output: Path, slide: str, record: dict[str, Any]) -> None:
    """Moves the files of a slide out of the work folder; it is finished from here on."""
    with output_errors(output):
        for path in files_of(output, slide):
            (output / WORK / path.name).replace(path)
        text = json.dumps(record, indent=2) + "\n"
        write_atomically(record_of(output, slide), lambda path: path.write_text(text))


def remove(output: Path, slide: str) -> None:
    """All files of a slide that is bad."""
    for path in files_of(output, slide):
        path.unlink(missing_ok=True)
        (output / WORK / path.name).unlink(missing_ok=True)


def write_table(output: Path) -> int:
    """slides.csv of the finished slides, of this and of earlier runs; how many there are."""
    records = [_read(path) for path in sorted((output / RECORDS).glob("*.json"))]

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(records)

    with output_errors(output):
        write_atomically(output / "slides.csv", write)
        shutil.rmtree(output / WORK, ignore_errors=True)
    return len(records)
