"""Measures what opening and checking slides of full size costs, and sampling from as many as a challenge has.

    python benchmarks/full_size.py --folder /tmp/full_size --slides 160 425

A slide of 97,280 × 215,040 pixels (430,000 JPEG tiles, 2 GB) is made of painted tiles, if it is not in the folder yet,
and linked under many names. Each line is a JSON object. `reads` and `read_mb` are what /proc/self/io counts of the
process: reads from the file system, from its cache as well. `strace -f -c -e trace=openat` counts how often files are
opened.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VIPS_CONCURRENCY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import imagecodecs
import numpy as np
import psutil
import shapely
import tifffile

from benchmarks.sampler_memory import links
from samplers import SAMPLERS, SamplerConfig, SlidePair
from samplers.labels import polygons
from samplers.labels.label_map import LabelMap
from samplers.pairs.pairing import check_pairs
from samplers.slides.slide import Slide
from utils.demo.slides import SPACING, write_asap
from utils.demo.tissue import Layout, Stain, make_layout, paint, tumour_mask
from utils.files import write_atomically

TILE = 256
PAINTED = 2048  # pixels of the side of the picture whose tiles the slide repeats
LEVELS = 9


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the slide is, or is made")
    add("--width", type=int, default=97_280)
    add("--height", type=int, default=215_040)
    add("--opened", type=int, default=48, help="slides that are opened and checked")
    add("--threads", type=int, nargs="+", default=[1, 4, 16])
    add("--slides", type=int, nargs="*", default=[160, 425], help="slides that are drawn from, one case each")
    add("--img_size", type=int, default=1024)
    add("--patches", type=int, default=300, help="patches of each case")
    return parser


def make_slide(folder: Path, width: int, height: int, share: float = 1.0) -> SlidePair:
    """Make a slide with its outlines, unless they are there, and return the pair.

    Tissue and outlines are shrunk to `share` of the slide's sides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "tumor_001" if share == 1 else f"tumor_{share:g}"
    pair = SlidePair(folder / f"{name}.tif", folder / f"{name}.xml")
    if pair.slide.exists() and pair.label is not None and pair.label.exists():
        return pair
    rng = np.random.default_rng(0)
    layout = make_layout(rng, PAINTED, 3)
    pixels = paint(rng, layout, tumour_mask(layout, PAINTED), Stain())
    scale = width * share / PAINTED, height * share / PAINTED
    whole = Layout(*(shapely.transform(part, lambda points: points * scale) for part in (layout.tissue,)),
                   *([shapely.transform(p, lambda points: points * scale) for p in parts]
                     for parts in (layout.lesions, layout.exclusions)))  # fmt: skip
    write_atomically(folder / f"{name}.xml", partial(write_asap, layout=whole, groups=("Tumor", "_2")))
    write_atomically(
        pair.slide, partial(write_slide, pixels=pixels, tissue=whole.tissue, size=(width, height))
    )
    return pair


def write_slide(path: Path, pixels: np.ndarray, tissue: shapely.Polygon, size: tuple[int, int]) -> None:
    """Write a pyramid: tissue shows the tiles of the picture, in their size on each level, and the rest is white."""
    middle = slice(PAINTED // 4, PAINTED * 3 // 4)  # is all tissue
    squares = (
        pixels[middle, middle]
        .reshape(PAINTED // 2 // TILE, TILE, -1, TILE, 3)
        .swapaxes(1, 2)
        .reshape(-1, TILE, TILE, 3)
    )
    white = np.full((TILE, TILE, 3), 242, np.uint8)
    tiles, glass = [_jpeg(square) for square in squares], _jpeg(white)

    def level(width: int, height: int, downsample: int) -> Iterator[bytes]:
        columns, rows = -(-width // TILE), -(-height // TILE)
        outline = shapely.transform(tissue, lambda points: points / (downsample * TILE))
        edges = polygons.edges_of(outline)
        covered = polygons.fill(edges, 0, 0, columns, rows, 1.0)
        cut = polygons.touched(edges, 0, 0, columns, rows, 1.0)
        for number, (row, column) in enumerate(np.ndindex(rows, columns)):
            chosen = number * 7 % len(tiles)
            if cut[row, column]:  # by the outline: a small tissue lies in one tile of a coarse level
                inside = polygons.fill(edges, column, row, TILE, TILE, 1 / TILE)
                yield _jpeg(np.where(inside[..., None], squares[chosen], white))
            else:
                yield tiles[chosen] if covered[row, column] else glass

    common: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "ycbcr", "compression": "jpeg", "metadata": None,
                              "subsampling": (2, 2), "resolution": (1e4 / SPACING,) * 2, "dtype": np.uint8,
                              "resolutionunit": "CENTIMETER"}  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number in range(LEVELS):
            width, height = (side >> number for side in size)
            data = level(width, height, 1 << number)
            tiff.write(data, shape=(height, width, 3), subfiletype=1 if number else 0, **common)


def _jpeg(square: np.ndarray) -> bytes:
    encoded = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(square), level=80, colorspace=2, outcolorspace=3, subsampling="420"
    )
    return bytes(encoded)


def measured(function: Callable[[], Any], count: int) -> dict[str, float]:
    """Call a function that does a thing `count` times. Return the costs of one of them."""
    before, begin, begin_cpu = _io(), time.perf_counter(), time.process_time()
    function()
    wall, cpu, after = time.perf_counter() - begin, time.process_time() - begin_cpu, _io()
    return {
        "ms": round(wall / count * 1000, 2),
        "cpu_ms": round(cpu / count * 1000, 2),
        "reads": round((after["syscr"] - before["syscr"]) / count, 1),
        "read_mb": round((after["rchar"] - before["rchar"]) / count / 1e6, 3),
    }


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def open_all(pairs: Sequence[SlidePair], threads: int) -> None:
    def open_one(pair: SlidePair) -> None:
        with Slide(pair.slide):
            pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(open_one, pairs))


def check_all(pairs: Sequence[SlidePair], threads: int) -> None:
    bad = [
        found.reasons
        for found in check_pairs(pairs, LabelMap(), 1024, None, threads).values()
        if found.reasons
    ]
    if bad:
        raise RuntimeError(f"{len(bad)} slides are refused, the first one because of {bad[0]}")


def draw(pairs: Sequence[SlidePair], img_size: int, patches: int) -> dict[str, dict[str, float]]:
    """Return the costs of the first look at a slide, and of a patch after that."""
    config = SamplerConfig(sampler="surf", img_size=img_size, batch_size=1, batch_tumor_ratio=0.5)
    sampler: Any = SAMPLERS["surf"](pairs, config, 0, 1)
    images, labels = (
        np.empty((1, img_size, img_size, 3), np.uint8),
        np.empty((1, img_size, img_size), np.uint8),
    )

    def look() -> None:
        for pair in pairs:
            sampler._regions_of(pair)

    def fill() -> None:
        for index in range(patches):
            sampler.fill(index, images, labels)

    return {"first look": measured(look, len(pairs)), "patch": measured(fill, patches)}


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    original = make_slide(options.folder, options.width, options.height)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        pairs = links([original], max(options.opened, *options.slides, 1), Path(folder))
        some = pairs[: options.opened]
        for what, function in (("Slide()", open_all), ("check", check_all)):
            for threads in options.threads:
                costs = measured(partial(function, some, threads), len(some))
                print(json.dumps({"what": what, "threads": threads, **costs}), flush=True)
        for count in options.slides:
            for what, costs in draw(pairs[:count], options.img_size, options.patches).items():
                rss = psutil.Process().memory_info().rss / 1e6
                print(json.dumps({"what": what, "slides": count, **costs, "rss_mb": round(rss)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
