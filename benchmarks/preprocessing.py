"""Measures the patches per second of the preprocessing, against bare reading and encoding of the same patches.

    python benchmarks/preprocessing.py --root /data/CAMELYON17 --patch_size 256 --num_threads 1 2

The bare rate is that of `pyvips.Region.fetch` and the PNG encoding of the same patches, without masks, in one thread.
Other options go to the preprocessing. The bare run and the preprocessing take turns, `--rounds` times, and ratios are
medians over the rounds. The workers' start in each round, about a second, is counted. The last lines are one JSON
object per case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("VIPS_CONCURRENCY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyvips

from CAMELYON17_PREPROCESSING import store
from CAMELYON17_PREPROCESSING.preprocess import build_parser as preprocessing_parser
from CAMELYON17_PREPROCESSING.preprocess import find_sources, settings_of
from CAMELYON17_PREPROCESSING.schedule import process
from CAMELYON17_PREPROCESSING.settings import Folders, PatchRow, PatchSettings, SourceSlide

BARE_PATCHES = 300


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--num_threads", type=int, nargs="+", default=[1, 2], help="worker processes, one case each")
    add("--rounds", type=int, default=3)
    return parser


def preprocess(
    sources: list[SourceSlide], settings: PatchSettings, processes: int
) -> tuple[float, list[PatchRow]]:
    """Return patches/s, and the patches."""
    with tempfile.TemporaryDirectory() as name:
        folders = Folders(Path(name) / "positive", Path(name) / "negative")
        store.prepare(folders, settings)
        start = time.perf_counter()
        process(sources, settings, folders, processes, lambda slides, patches: None)
        seconds = time.perf_counter() - start
        records = [store.read_record(path) for path in (folders.positive / "slides").glob("*.json")]
        rows = [row for record in records for kind in store.KINDS for row in record[kind]]
    return len(rows) / seconds, rows


def bare(sources: list[SourceSlide], rows: list[PatchRow]) -> float:
    """Return patches/s for some of these patches, slide by slide and row by row as in the preprocessing."""
    paths = {source.name: source.pair.slide for source in sources}
    step = max(1, len(rows) // BARE_PATCHES)
    start, done = time.perf_counter(), 0
    for name, path in paths.items():
        image = pyvips.Image.new_from_file(str(path), access="random")
        region = pyvips.Region.new(image)
        mine = [row for row in rows if row.slide == name]
        for row in mine[: max(1, len(mine) // step)]:
            data = region.fetch(row.x, row.y, row.size, row.size)
            pixels = np.frombuffer(data, np.uint8).reshape(row.size, row.size, -1)
            store.encode(pixels, "png", row.spacing)
            done += 1
    return done / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> None:
    options, words = build_parser().parse_known_args(argv)
    given = preprocessing_parser().parse_args([*words, "--save_neg"])
    settings, sources = settings_of(given), find_sources(given)[0]
    rates: dict[int, list[float]] = {processes: [] for processes in options.num_threads}
    bares: list[float] = []
    for _ in range(options.rounds):
        for processes, found in rates.items():
            rate, rows = preprocess(sources, settings, processes)
            found.append(rate)
        bares.append(bare(sources, rows))
    for processes, found in rates.items():
        print(
            json.dumps(
                {
                    "patch_size": given.patch_size,
                    "num_threads": processes,
                    "patches": len(rows),
                    "patches_per_second": round(median(found), 1),
                    "bare_per_second": round(median(bares), 1),
                    "ratio_to_bare": round(median(r / b for r, b in zip(found, bares)), 3),
                    "ratio_to_first": round(
                        median(r / f for r, f in zip(found, next(iter(rates.values())))), 3
                    ),
                }
            )
        )


if __name__ == "__main__":
    main()
