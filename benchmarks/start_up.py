"""Measures what the start of a run costs with slides of full size: the first time, and when it was found before.

    python benchmarks/start_up.py --folder /tmp/full_size --slides 270

The slide is that of `full_size.py`, hard-linked under many names. A mask without a pyramid (25 MB) and files of 90,000
and 50,000 outlines and of two million points (100 MB each) are made beside it, if they are not there yet. Each line is
a JSON object with the processor seconds of one thing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VIPS_CONCURRENCY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tifffile

from benchmarks.full_size import make_slide, measured
from samplers import SAMPLERS, SamplerConfig, SlidePair
from samplers.labels.annotations import read_areas
from samplers.labels.label import LabelMap, PolygonLabel, open_label
from samplers.slides.slide import Slide
from samplers.validation import validation_patches
from training.data import prepare_slides
from training.option_checks import parse_options
from utils.files import write_atomically
from utils.ranks.single import ALONE

TILE = 512
SIZE = 97_280, 215_040
LEVEL_7 = 760, 1680
# Outlines, points of each, their radius in level-0 pixels, and the file.
OUTLINES = {
    "polygons.xml": (90_000, 20, 100),
    "cells.geojson": (50_000, 24, 60),
    "vertices.xml": (8, 250_000, 14_000),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the files are, or are made (4.6 GB)")
    add("--slides", type=int, default=270, help="names of the slide that are checked; 0: none")
    add("--looked_at", type=int, default=40, help="slides whose thumbnails are looked at")
    return parser


def make_mask(path: Path, outlines: Path) -> Path:
    """Make a mask of one level of outlines of two million points at most, unless it is there."""
    if not path.exists():
        areas = read_areas(outlines, (0, 0))[0]
        write_atomically(
            path, lambda partial: _write_mask(partial, PolygonLabel(SIZE, areas, LabelMap(), ""))
        )
    return path


def _write_mask(path: Path, label: PolygonLabel) -> None:
    def tiles() -> Iterator[bytes]:
        for y in range(0, SIZE[1], TILE):
            for x in range(0, SIZE[0], TILE):
                width, height = min(TILE, SIZE[0] - x), min(TILE, SIZE[1] - y)
                tile = np.zeros((TILE, TILE), np.uint8)
                tile[:height, :width] = label.read_at(x, y, width, height, 1.0)
                yield zlib.compress(tile.tobytes(), 1)

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(tiles(), shape=SIZE[::-1], dtype=np.uint8, tile=(TILE, TILE), compression="zlib",
                   photometric="minisblack", metadata=None)  # fmt: skip


def make_outlines(path: Path, count: int, points: int, radius: float) -> Path:
    """Write wavy outlines on a grid, every tenth of them an exclusion, unless the file is there."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    columns = int(np.ceil(count**0.5))
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    shapes = []
    for number in range(count):
        centre = (np.array([number % columns, number // columns]) + 0.5) / columns * SIZE
        wave = radius * (1 + 0.2 * np.sin(5 * angles + rng.random() * 7))
        shapes.append((centre + wave[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2))
    groups = ["Tumor" if number % 10 else "Exclusion" for number in range(count)]
    write = _write_geojson if path.suffix == ".geojson" else _write_asap
    write_atomically(path, partial(write, shapes=shapes, groups=groups))
    return path


def _write_asap(path: Path, shapes: Sequence[np.ndarray], groups: Sequence[str]) -> None:
    with path.open("w") as file:
        file.write("<ASAP_Annotations><Annotations>")
        for number, (points, group) in enumerate(zip(shapes, groups)):
            file.write(f'<Annotation Name="{number}" Type="Polygon" PartOfGroup="{group}"><Coordinates>')
            file.writelines(
                f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points.tolist())
            )
            file.write("</Coordinates></Annotation>")
        file.write("</Annotations></ASAP_Annotations>")


def _write_geojson(path: Path, shapes: Sequence[np.ndarray], groups: Sequence[str]) -> None:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*points.tolist(), points[0].tolist()]]},
            "properties": {"objectType": "annotation", "classification": {"name": group}},
        }
        for points, group in zip(shapes, groups)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def hard_links(original: SlidePair, count: int, folder: Path) -> list[SlidePair]:
    pairs = [SlidePair(folder / f"tumor_{i:04d}.tif", folder / f"tumor_{i:04d}.xml") for i in range(count)]
    for pair in pairs:
        assert original.label is not None
        assert pair.label is not None
        os.link(original.slide, pair.slide)
        os.link(original.label, pair.label)
    return pairs


def show(what: str, function: Callable[[], Any]) -> None:
    costs = measured(function, 1)
    line = {"what": what, "cpu_s": round(costs["cpu_ms"] / 1000, 2), "s": round(costs["ms"] / 1000, 2)}
    print(json.dumps(line), flush=True)


def measure_slides(original: SlidePair, folder: Path, options: argparse.Namespace) -> None:
    pairs = hard_links(original, options.slides, folder)
    words = f"--slide_path={folder} --label_path={folder} --label_format=xml --data_sampler=surf"
    config = SamplerConfig("surf", img_size=1024, batch_size=1)
    some = pairs[: options.looked_at]
    alone: Any = ALONE
    for when in ("first", "again"):
        show(
            f"check of {len(pairs)} slides, {when}",
            lambda: prepare_slides(parse_options(words.split()), alone),
        )
        show(f"validation patches of {len(some)} slides, {when}", lambda: validation_patches(some, config))
        sampler: Any = SAMPLERS["surf"](some, config, 0, 1)
        show(f"regions of {len(some)} slides, {when}", lambda: [sampler._regions_of(pair) for pair in some])  # noqa: B023


def measure_labels(slide: Slide, mask: Path, outlines: Sequence[Path]) -> None:
    for when in ("first", "again"):
        label = open_label(mask, slide, LabelMap())
        show(f"{mask.name}, a mask without a pyramid, {when}", lambda: label.thumbnail(*LEVEL_7))  # noqa: B023
    for path in outlines:
        show(f"{path.name}, opened", lambda: open_label(path, slide, LabelMap()))  # noqa: B023
        label = open_label(path, slide, LabelMap())
        show(f"{path.name}, areas", label.areas)
        show(f"{path.name}, thumbnail", lambda: label.thumbnail(*LEVEL_7))  # noqa: B023


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    original = make_slide(options.folder, *SIZE)
    assert original.label is not None
    outlines = [make_outlines(options.folder / name, *numbers) for name, numbers in OUTLINES.items()]
    mask = make_mask(options.folder / "mask.tif", original.label)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["CACHE_DIR"] = str(Path(folder) / "kept")
        (Path(folder) / "slides").mkdir()
        if options.slides:
            measure_slides(original, Path(folder) / "slides", options)
        with Slide(original.slide) as slide:
            measure_labels(slide, mask, outlines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
