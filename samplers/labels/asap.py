"""Takes the annotations out of ASAP's XML: their attributes and points.

A file of 100 MB has two million points. As a tree they would take a gigabyte, so they are taken one by one from the
parser on which Python's trees are built. It never opens another file. A document type is refused: entities are defined
there, and may grow to any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from samplers.slides.errors import DataError

_ROOT = "ASAP_Annotations"


class AsapAnnotation(NamedTuple):
    """An annotation of the file: the name by which it is spoken of, its attributes, and its points in their order."""

    name: str
    attributes: dict[str, str]
    points: np.ndarray  # float64 (n, 2), level-0 pixels


def read_annotations(path: Path) -> list[AsapAnnotation]:
    """Return the annotations in the file's order. Raises DataError if it is no such file."""
    reader = _Reader(path)
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.StartDoctypeDeclHandler = reader.refuse_document_type
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except DataError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: its encoding
        raise DataError(f"{path}: is not valid XML: {error!r}") from error
    return [*reader.found, *reader.last()]


class _Reader:
    """What the parser calls: collects the points of the annotation that began last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[AsapAnnotation] = []
        self._root = ""
        self._attributes: dict[str, str] | None = None
        self._rows: list[tuple[float, float, float]] = []  # order, x, y

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "Coordinate":
            try:
                row = float(attributes["Order"]), float(attributes["X"]), float(attributes["Y"])
            except (KeyError, ValueError):
                row = self._row(attributes)
            self._rows.append(row)
        elif not self._root:
            self._root = tag
            if tag != _ROOT:
                raise DataError(f"{self.path}: has no ASAP annotations, its root is <{tag}>")
        elif tag == "Annotation":
            self.found += self.last()
            self._attributes, self._rows = attributes, []

    def refuse_document_type(self, name: str, *_: object) -> None:
        raise DataError(f"{self.path}: is not valid XML here: it has a document type, {name!r}")

    def last(self) -> Iterator[AsapAnnotation]:
        """Yield the annotation that began last, if one has."""
        if self._attributes is None:
            return
        rows = np.array(self._rows, np.float64).reshape(-1, 3)
        wrong = rows[~np.isfinite(rows[:, 0]), 0]
        if len(wrong):
            raise DataError(f"{self.path}: {self._name} has a coordinate whose Order is {wrong[0]}")
        points = rows[np.argsort(rows[:, 0], kind="stable"), 1:]
        yield AsapAnnotation(self._name, self._attributes, points)

    @property
    def _name(self) -> str:
        return f"{self.path.name}: annotation {len(self.found)} ({(self._attributes or {}).get('Name')!r})"

    def _row(self, attributes: dict[str, str]) -> tuple[float, float, float]:
        """Return a row of a coordinate without Order, or with a decimal comma, as ASAP writes it in some locales."""
        order = attributes.get("Order", str(len(self._rows)))
        texts = order, attributes.get("X", "nan"), attributes.get("Y", "nan")
        try:
            order_, x, y = (float(text.replace(",", ".")) for text in texts)
        except ValueError as error:
            raise DataError(
                f"{self.path}: {self._name} has a coordinate that is not a number: {error}"
            ) from error
        return order_, x, y
