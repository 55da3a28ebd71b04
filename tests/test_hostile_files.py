"""Files that no tool has written, drawn at random: each is read, or refused in one line, in bounded memory and time.

`-m slow` tries many more of them. The examples of the usual run are the same each time.
"""

from __future__ import annotations

import copy
import json
import resource
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.tables import read_detections, read_slide_scores
from samplers.labels.annotations import read_geojson
from samplers.labels.label import LabelMap, open_label
from samplers.pairs.camelyon import _stages
from samplers.pairs.checks import decode_samples, refuse_incomplete
from samplers.slides.slide import Slide
from tests.helpers.tiny_slides import texture, write_levels
from tests.samplers.labels.test_annotations import SQUARE, asap, ring
from utils.cli import UserError

SECONDS, BYTES = 10.0, 1 << 30  # that a small file may take; a loaded machine is slow
FEW, MANY = 40, 2000
SIDE = 300  # of the slide

often = pytest.mark.parametrize(
    "examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)


class Frame:
    """Stands for the slide of a label."""

    width = height = SIDE
    origin = (7, 0)


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block takes much memory or time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, hard))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - start < SECONDS


def read_or_refused(read: Callable[[Path], object], path: Path) -> str:
    """Return why the file is refused, "" if it is read. Any other error is one of the program."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numbers that overflow
            read(path)
    except UserError as error:
        reason = str(error)
    else:
        return ""
    assert path.name in reason
    assert "\n" not in reason
    return reason


def drawn(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Call `check` with so many examples."""
    few = settings(
        max_examples=examples, deadline=None, derandomize=examples == FEW, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    few(given(strategy)(check))()


def use_label(path: Path) -> None:
    """Read a label as the check, the samplers and the pictures do."""
    label = open_label(path, Frame(), LabelMap())
    label.annotations()
    label.areas()
    label.thumbnail(100, 100)
    label.read_at(0, 0, 128, 128, 1.0)


numbers = st.one_of(
    st.floats(),
    st.integers(-(10**25), 10**25),
    st.sampled_from([1e9, 1e308, -1e308, 1e-320, 10**400, 2**63, -0.0]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "coordinates", "geometries", "name", "features"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {"type": "Feature", "id": "PathAnnotationObject", "geometry": {"type": kind, "coordinates": coordinates},
         "properties": {"objectType": "annotation", "isEllipse": False, "classification": {"name": "Tumor"}}}
        for kind, coordinates in (
            ("Polygon", [ring(10, 10, 50), ring(20, 20, 9)]), ("MultiPolygon", [[ring(90, 90, 50)], [ring(0, 0, 5)]])
        )
    ] + [{"type": "Feature", "properties": {"classification": "Tumor"}, "geometry": {
        "type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [ring(100, 9, 50)]}]}}],
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where in nested lists and dictionaries something could be put."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


GEOJSON_PLACES = list(places(GEOJSON))
changes = st.lists(st.tuples(st.sampled_from(GEOJSON_PLACES), values), min_size=1, max_size=3)


def with_changes(found: list[tuple[tuple[Any, ...], Any]]) -> Any:
    content = copy.deepcopy(GEOJSON)
    for (*path, last), value in found:
        inner: Any = content
        try:
            for key in path:
                inner = inner[key]
            inner[last] = value
        except (TypeError, LookupError):  # an earlier change has taken it away
            continue
    return content


@often
def test_geojson_of_any_content(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "a.geojson"
    reasons = set()

    def check(content: Any) -> None:
        path.write_text(json.dumps(content))
        reasons.add(read_or_refused(use_label, path) != "")

    drawn(examples, changes.map(with_changes) | values, check)
    assert reasons == {True, False}  # the changes are neither too small nor too large


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"features":' * 100_000, '{"type":"Feature","geometry":' + "[" * 100_000 + "]" * 100_000 + "}",
     '{"type":"Feature","properties":{"classification":"T"},"geometry":{"type":"Polygon","coordinates":'
     + "[" * 900 + "]" * 900 + "}}"],
    ids=["lists", "features", "geometry", "coordinates"],
)  # fmt: skip
def test_geojson_of_any_depth(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(text)
    assert read_or_refused(read_geojson, path)


ATTRIBUTES = ("Type", "PartOfGroup", "Name", "X", "Y", "Order")
words = numbers.map(str) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5) | st.sampled_from(
    ["Rectangle", "Spline", "Dot", "None", "nan", "1e308", "1,5", "&#0;", "&a;", '"', "<"]
)  # fmt: skip


@often
def test_asap_xml_of_any_content(tmp_path: Path, examples: int) -> None:
    text = asap(
        ("Polygon", "Tumor", SQUARE), ("Rectangle", "_0", SQUARE[::2]), ("Spline", "_1", [*SQUARE, (90, 9)])
    )
    pieces = text.split('"')  # every second one is the value of an attribute
    path = tmp_path / "a.xml"
    reasons = set()

    def check(found: tuple[list[tuple[int, str]], list[tuple[int, bytes]]]) -> None:
        in_attributes, in_bytes = found
        changed = list(pieces)
        for place, word in in_attributes:
            changed[2 * (place % (len(pieces) // 2)) + 1] = word
        path.write_bytes(overwritten('"'.join(changed).encode(), in_bytes))
        reasons.add(read_or_refused(use_label, path) != "")

    anywhere = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), max_size=1)
    drawn(examples, st.tuples(st.lists(st.tuples(st.integers(0, 10**6), words), max_size=3), anywhere), check)
    assert reasons == {True, False}


def overwritten(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for place, data in changes:
        place %= len(content)
        content = content[:place] + data + content[place + len(data) :]
    return content


@often
@pytest.mark.parametrize("read", [read_detections, read_slide_scores, _stages])
def test_csv_of_any_content(tmp_path: Path, read: Callable[[Path], object], examples: int) -> None:
    path = tmp_path / "a.csv"
    cells = st.one_of(
        words, st.sampled_from(["a.tif", "../../etc/x", "0.5", '"', "confidence", "probability", "image"])
    )
    lines = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map("\n".join)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_or_refused(read, path)

    drawn(examples, lines.map(partial(str.encode, encoding="utf-8")) | st.binary(max_size=60), check)


def use_slide(path: Path, kind: str) -> None:
    """Read a slide as the check does."""
    with Slide(path, kind=kind) as slide:
        refuse_incomplete(slide)
        decode_samples(slide)
        slide.thumbnail(64)


class ChangedTiff:
    """A small TIFF whose headers can be changed: each change is (entry, offset in it, bytes), an entry is
    (tag, type, count, value).
    """

    def __init__(self, folder: Path, kind: str) -> None:
        pixels = texture(160, 128) if kind == "image" else texture(160, 128)[..., 0] // 128
        self.whole = write_levels(folder / "whole.tif", [pixels, pixels[::2, ::2]]).read_bytes()
        self.path, self.kind = folder / "a.tif", kind
        (first,) = struct.unpack_from("<I", self.whole, 4)
        (count,) = struct.unpack_from("<H", self.whole, first)
        self.entries = [first + 2 + 12 * entry for entry in range(count)]

    def check(self, changes: list[tuple[int, int, bytes]]) -> None:
        placed = [(self.entries[entry % len(self.entries)] + offset, data) for entry, offset, data in changes]
        self.path.write_bytes(overwritten(self.whole, placed))
        read_or_refused(partial(use_slide, kind=self.kind), self.path)


@often
@pytest.mark.parametrize("kind", ["image", "label"])
def test_tiff_headers_of_any_content(tmp_path: Path, kind: str, examples: int) -> None:
    shorts = st.integers(0, 2**16 - 1).map(lambda value: struct.pack("<H", value))
    longs = st.sampled_from([0, 1, 7, 2**16, 61_440, 2**31 - 1, 2**32 - 1]).map(
        lambda value: struct.pack("<I", value)
    )
    change = st.tuples(st.integers(0, 99), st.sampled_from([0, 2, 4, 8]), shorts | longs)
    drawn(examples, st.lists(change, min_size=1, max_size=2), ChangedTiff(tmp_path, kind).check)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize(
    "changes",
    [[(4, 8, b"\0\0")], [(3, 8, b"\0\0")], [(3, 8, b"!\0")], [(1, 0, b"\0\0"), (2, 0, b"\0\0")]],
    ids=["compression 0", "0 bits", "33 bits", "no size"],
)
def test_tiff_headers_that_were_found_to_fail(tmp_path: Path, kind: str, changes: list) -> None:
    ChangedTiff(tmp_path, kind).check(changes)
