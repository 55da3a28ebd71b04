"""Compares slide after slide with its label, writes the files of each, and the table of all."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.each import report_failed, spared
from prediction import store
from prediction.audit import files, labels
from prediction.audit.findings import KINDS, AuditSettings, findings_of
from prediction.audit.maps import ComparedSlide
from prediction.store import PredictionSettings
from samplers.labels.label_map import LabelMap
from samplers.pairs.pairing import SlidePair, map_of
from utils.cli import EXIT_FAILED, NO_ROOM
from utils.files import OutputError, output_errors, write_atomically
from utils.reporting.progress_bar import shown

RECORDS, QUPATH, PICTURES, TABLE = "slides", "qupath", "pictures", "audit.csv"
SHOWN = 10  # regions that are printed


@dataclass
class Audited:
    """What a rank has compared."""

    findings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # slide → rows of the table
    failed: dict[str, str] = field(default_factory=dict)  # slide → reason
    error: str = ""  # the file that could not be written, for which the rank has stopped


@dataclass(frozen=True)
class Audit:
    """Compares slides that are predicted with their labels, and writes the files of each."""

    output: Path
    predictions: Path
    label_map: LabelMap
    names: Sequence[str]  # of the classes
    prediction: PredictionSettings
    settings: AuditSettings
    as_masks: bool  # whether labels are masks, so that a training takes masks

    def of(self, pair: SlidePair) -> list[dict[str, Any]]:
        """Return the rows of a slide, those that are there if nothing has changed. DataError: it cannot be used."""
        record = self.output / RECORDS / f"{pair.name}.json"
        state = self._state(pair)
        kept = _read(record)
        if kept.get("state") == state:
            return list(kept["findings"])
        rows = self._compare(pair)
        text = json.dumps({"state": state, "findings": rows}, indent=2) + "\n"
        _write(record, lambda path: path.write_text(text))
        return rows

    def _state(self, pair: SlidePair) -> str:
        """Return a digest of all that decides what is found on a slide."""
        about = [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for path in (pair.label, store.record_of(self.predictions, pair.name))
            if path is not None
        ]
        decides = [about, astuple(map_of(pair, self.label_map)), asdict(self.settings), self.as_masks]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def _compare(self, pair: SlidePair) -> list[dict[str, Any]]:
        label_map, name, output = map_of(pair, self.label_map), pair.name, self.output
        with ComparedSlide(self.predictions, pair.slide, pair.label, label_map, self.prediction) as slide:
            maps = slide.whole()
            findings = findings_of(slide, maps, self.settings)
            rows = files.rows_of(name, findings, slide.slide.spacing)
            annotations = files.annotations_of(pair.label, slide, maps, label_map, self.names)
            threshold = self.settings.threshold
            writers = {
                output / QUPATH / f"{name}.geojson": lambda path: files.write_qupath(
                    path, findings, rows, slide
                ),
                output / PICTURES / f"{name}.png": lambda path: files.write_picture(
                    path, findings, slide, maps, threshold
                ),
            }
            xml, mask = output / labels.ASAP / f"{name}.xml", output / labels.MASKS / f"{name}_mask.tif"
            if pair.label is not None or findings:  # a slide without lesions needs no label
                writers[xml] = lambda path: files.write_to_correct(path, findings, annotations)
                if self.as_masks:
                    work = mask.with_name(f".{name}.raster")
                    writers[mask] = lambda path: labels.write_mask(path, findings, slide, work)
            for earlier in {xml, mask} - set(writers):
                earlier.unlink(missing_ok=True)
            for path, writer in writers.items():
                _write(path, writer)
        return rows


def _write(path: Path, writer: Callable[[Path], Any]) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, writer)


def _read(record: Path) -> dict[str, Any]:
    """Return a record; an empty one if there is none, or no whole one, so that its slide is compared again."""
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError):
        return {}


def compare(audit: Audit, pairs: Iterable[SlidePair], failed: int, allowed: int) -> Audited:
    """Compare slides until more than `allowed` are bad, of which `failed` are already."""
    audited = Audited()
    for pair in shown(list(pairs), "comparing", "slide"):
        with spared(audited.failed, pair.name):
            try:
                audited.findings[pair.name] = audit.of(pair)
            except OutputError as error:
                audited.error = NO_ROOM.format(error)
                break
        if failed + len(audited.failed) > allowed:
            break
    return audited


def summarise(
    program: str, audit: Audit, parts: Sequence[Audited], missing: Mapping[str, str], allowed: int
) -> int:
    """Write the table, print what was found, and return the exit code.

    There is no table if more than `allowed` slides are bad, or files could not be written. OutputError: it is the table
    that cannot.
    """
    failed = {**missing, **{slide: why for part in parts for slide, why in part.failed.items()}}
    errors = {part.error for part in parts if part.error}
    if len(failed) > allowed:
        lines = [f"  {slide}: {why}" for slide, why in sorted(failed.items())]
        errors.add(
            f"{len(failed)} slides are bad, and --max_bad_slides allows {allowed}. The same command goes on when they "
            + "\n".join(["are mended or left out:", *lines])
        )
    if errors:
        sys.stderr.write("".join(f"{program}: error: {error}\n" for error in sorted(errors)))
        return EXIT_FAILED
    found = [row for part in parts for rows in part.findings.values() for row in rows]
    found.sort(key=lambda row: (-row["score_mm2"], row["slide"], row["number"]))
    ranked = [{"rank": rank, **row} for rank, row in enumerate(found, 1)]
    table = audit.output / TABLE
    _write(table, lambda path: write_table(path, ranked))
    print(report(audit, ranked, sum(len(part.findings) for part in parts)), flush=True)
    return report_failed(failed)


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, files.COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def report(audit: Audit, rows: Sequence[dict[str, Any]], slides: int) -> str:
    """Return the text that is printed."""
    counts = Counter(row["kind"] for row in rows)
    lines = [
        f"{slides} slides, {len(rows)} regions in which annotation and prediction disagree with confidence"
    ]
    lines += [f"  {counts[kind]:5} {kind}: {meaning}" for kind, meaning in KINDS.items() if counts[kind]]
    width = max((len(row["slide"]) for row in rows), default=0)
    for row in rows[:SHOWN]:
        moved = f", move by {row['move_um']} µm" if row["move_um"] != "" else ""
        lines.append(
            f"{row['rank']:4}. {row['slide']:<{width}}  {row['kind']:<8}  {row['score_mm2']:.4f} mm² at "
            f"({row['x']}, {row['y']}){moved}"
        )
    lines.append(f"written to {audit.output}: {TABLE}, {QUPATH}, {labels.ASAP}, {PICTURES}")
    if rows:
        options = labels.training_options(audit.output, audit.label_map, audit.as_masks)
        lines.append(f"train.py ignores these regions with: {options}")
    return "\n".join(lines)
