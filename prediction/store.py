"""The files of an output folder: those of each slide, a record of each finished slide, and a table of all slides.

<slide>_probability.tif, <slide>_prediction.tif, <slide>_overlay.png, <slide>.geojson, <slide>.xml
<slide>_disagreement.tif, <slide>_entropy.tif, <slide>_look_here.geojson       of several models
lesions/<slide>.csv       confidence,X,Y
slides/<slide>.json       the record, written last: a slide without one is predicted again
slides.csv                one line per slide
prediction.json           the model and the options that all slides have in common
.work/                    unfinished files, and what is predicted of unfinished slides (`prediction/progress.py`)
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from samplers.slides.stored_slide import slide_name, state_of
from utils.cli import UserError
from utils.files import differences, output_errors, remove_path, write_atomically

WORK, RECORDS, LESIONS = ".work", "slides", "lesions"
DIGEST = 16  # digits
OVERLAP = 0.25  # share of a patch that the next one covers as well, unless it is asked for otherwise
# Ends the names of what `Progress` keeps.
PROGRESS = rf"\.[0-9a-f]{{{DIGEST}}}\.(rows|probability|classes|deviation|entropy)"
COLUMNS = ("slide", "probability", "diameter_mm", "node_label", "area_mm2", "seconds")


@dataclass(frozen=True)
class PredictionSettings:
    """The settings of a prediction. Those that change the result are the same for all slides of a folder."""

    model: str  # `ModelSource.identity`
    img_size: int
    overlap: float
    # A patch's result does not depend on the patches beside it, but for the last bits of its probabilities: some CPU
    # kernels add in another order. So a run that was out of memory may go on with a smaller one.
    batch_size: int = field(compare=False)
    resolution: float | None  # µm/px, None: level 0
    tissue_only: bool
    bb_downsample: int
    tta: bool
    mixed_precision: str | None  # None: that of the export
    threshold: float  # for two classes; with more classes the most probable one is taken
    min_lesion_mm: float

    def deciding(self) -> dict[str, Any]:
        """Return the settings that change the result."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.compare}


def files_of(output: Path, slide: str, outlines: bool = True, doubts: bool = True) -> list[Path]:
    """Return the paths of all files of a slide but its record.

    Without `outlines` not those for QuPath and ASAP, without `doubts` not those that only an ensemble has.
    """
    names = ["_probability.tif", "_prediction.tif", "_overlay.png"]
    names += [".geojson", ".xml"] if outlines else []
    names += ["_disagreement.tif", "_entropy.tif", "_look_here.geojson"] if doubts else []
    return [*(output / f"{slide}{name}" for name in names), output / LESIONS / f"{slide}.csv"]


def record_of(output: Path, slide: str) -> Path:
    """Return the path of the record of a slide, which exists if the slide is finished."""
    return output / RECORDS / f"{slide}.json"


def is_finished(output: Path, slide: Path) -> bool:
    """Return whether a slide has been predicted, and has not changed since.

    UserError: another slide of its name has been.
    """
    path = record_of(output, slide_name(slide))
    if not path.exists():
        return False
    record, now = _read(path), str(slide.absolute())
    if not _was_seen(record):
        return False
    if "state" in record:  # records of earlier versions have none
        try:
            state = state_of(slide)
        except OSError:  # it is gone, and was looked at
            return True
        if record["state"] == state:
            return True
        if record["path"] == now:
            return False
    if record.get("path", now) != now:
        raise UserError(
            f"{output} holds the prediction of {record['path']}, but {now} has the same name: name another --output, "
            f"or remove {path} if it is the same slide"
        )
    return True


def _was_seen(record: dict[str, Any]) -> bool:
    """Return whether the slide was looked at. Earlier versions called a slide negative of which they saw no patch."""
    return record.get("patches") != 0


def read_record(output: Path, slide: str) -> dict[str, Any]:
    """Return the record of a finished slide. UserError: it cannot be read."""
    return _read(record_of(output, slide))


def prepare(output: Path, settings: PredictionSettings) -> None:
    """Make the folder; only rank 0 calls it.

    UserError: the folder holds slides of another model or of options that change the result, or cannot be written.
    """
    note = output / "prediction.json"
    if note.exists() and any((output / RECORDS).glob("*.json")):
        changed = differences(_read(note), settings.deciding())
        if changed:
            raise UserError(
                f"{output} holds predictions of another model or with other options: {', '.join(changed)}. Remove "
                "it, or name another --output"
            )
    with output_errors(output):
        for folder in (WORK, RECORDS, LESIONS):
            (output / folder).mkdir(parents=True, exist_ok=True)
        for path in (output / WORK).iterdir():
            if not re.search(PROGRESS + "$", path.name):
                remove_path(path)
        write_atomically(note, lambda path: path.write_text(json.dumps(asdict(settings), indent=2) + "\n"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read, so remove it: {error!r}") from error


def finish(
    output: Path, slide: str, record: dict[str, Any], outlines: bool = True, doubts: bool = False
) -> None:
    """Move the files of a slide out of the work folder and write its record: from here on it is finished.

    `outlines`, `doubts`: as for `files_of`.
    """
    with output_errors(output):
        for path in files_of(output, slide, outlines, doubts):
            (output / WORK / path.name).replace(path)
        text = json.dumps(record, indent=2) + "\n"
        write_atomically(record_of(output, slide), lambda path: path.write_text(text))


def remove(output: Path, slide: str) -> None:
    """Delete all files of a slide that cannot be used."""
    for path in files_of(output, slide):
        path.unlink(missing_ok=True)
        (output / WORK / path.name).unlink(missing_ok=True)


def write_table(output: Path) -> int:
    """Write slides.csv, with the finished slides of this and of earlier runs, and return their number."""
    found = [_read(path) for path in sorted((output / RECORDS).glob("*.json"))]
    records = [record for record in found if _was_seen(record)]

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(records)

    with output_errors(output):
        write_atomically(output / "slides.csv", write)
        _tidy(output / WORK, {str(record["slide"]) for record in records})
    return len(records)


def _tidy(work: Path, finished: Collection[str]) -> None:
    """Remove the work folder, but for what is predicted of slides that are not finished."""
    for path in work.iterdir() if work.is_dir() else ():
        progress = re.search(PROGRESS + "$", path.name)
        if progress is None or path.name[: progress.start()] in finished:
            remove_path(path)
    with contextlib.suppress(OSError):  # it is not empty, or not there
        work.rmdir()
