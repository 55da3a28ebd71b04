"""Measures the memory of a sampler process that opens many slides in turn, which are links to a folder's slides.

    python benchmarks/sampler_memory.py --slide_path S --label_path L --label_format xml --slides 300

The last line is a JSON object: RSS in MB of the worker process after each tenth of the slides, and its growth
from the third of them (its caches are full by then) to the last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.sampler import sampler_parser
from samplers import SamplerConfig, SlidePair, training_loader
from samplers.pairs.pairing import find_pairs

TENTHS = 10


def build_parser() -> argparse.ArgumentParser:
    parser = sampler_parser()
    parser.add_argument("--slides", type=int, default=300, help="links to open in turn")
    parser.add_argument("--rounds", type=int, default=3, help="patches per slide, about")
    return parser


def links(pairs: Sequence[SlidePair], count: int, folder: Path) -> list[SlidePair]:
    """`count` pairs of other names, each a link to one of `pairs`."""
    made = []
    for i in range(count):
        pair = pairs[i % len(pairs)]
        slide = folder / f"tumor_{i:04d}{pair.slide.suffix}"
        slide.symlink_to(pair.slide.resolve())
        label = None
        if pair.label is not None:
            label = folder / f"tumor_{i:04d}_label{pair.label.suffix}"
            label.symlink_to(pair.label.resolve())
        made.append(SlidePair(slide, label))
    return made


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    found, _ = find_pairs(
        options.slide_path, options.label_path, options.slide_format, options.label_format, "skip"
    )
    labelled = [pair for pair in found if pair.label is not None]
    config = SamplerConfig(options.data_sampler, options.img_size, options.batch_size)
    batches = options.slides * options.rounds // options.batch_size
    with tempfile.TemporaryDirectory() as folder:
        pairs = links(labelled, options.slides, Path(folder))
        opened: set[str] = set()
        rss = []
        with training_loader(pairs, config, 0, 1, processes=1) as loader:
            worker = psutil.Process(loader.worker_pids[0])
            for number, batch in enumerate(loader, 1):
                opened |= {patch.slide for patch in batch.patches}
                if number % max(1, batches // TENTHS) == 0:
                    rss.append(round(worker.memory_info().rss / 2**20, 1))
                if number >= batches:
                    break
    growth = round(rss[-1] - rss[len(rss) // 3], 1)
    print(
        json.dumps({**vars(options), "opened": len(opened), "rss_mb": rss, "growth_mb": growth}, default=str)
    )


if __name__ == "__main__":
    main()
