"""Measures the patches per second of a sampler, with image and label as for the model, against bare reading by libvips.

    python benchmarks/sampler.py --data_sampler surf --slide_path S --label_path L --img_size 1024 \
        --batch_size 2 --sample_processes 1 2

The bare rate is that of `pyvips.Region.fetch` at level 0 in one thread, at the places of the sampler's own patches,
where decoding JPEG is the limit. Bare reading and samplers take turns, `--rounds` times, and ratios are medians over
the rounds, so that other work on the machine affects both. `cpu_ratio_to_bare` compares the processor time per patch,
which other work hardly changes. The last lines are one JSON object per case.

With `--wholeslidedata PEER/bin/python`, an interpreter whose environment has wholeslidedata, openslide-python,
openslide-bin and psutil, its batch iterator takes its turns as well: lesions of the same slides, whose outlines must be
ASAP XML (`--label_format xml`), in one worker process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

os.environ.setdefault("VIPS_CONCURRENCY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import pyvips

from benchmarks.turns import Side
from samplers import SAMPLERS, Batch, Loader, PatchInfo, SamplerConfig, SlidePair, training_loader
from samplers.pairs.pairing import find_pairs
from samplers.radboud import WEIGHTINGS
from samplers.slides.slide import Slide
from samplers.workers.ring import slot_count


def sampler_parser() -> argparse.ArgumentParser:
    """Return the options of both sampler benchmarks."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--data_sampler", choices=list(SAMPLERS), default="surf")
    add("--slide_path", type=Path, required=True)
    add("--label_path", type=Path, required=True)
    add("--slide_format", default="tif")
    add("--label_format", default="tif")
    add("--img_size", type=int, default=1024)
    add("--batch_size", type=int, default=2)
    return parser


def build_parser() -> argparse.ArgumentParser:
    parser = sampler_parser()
    add = parser.add_argument
    add("--batch_tumor_ratio", type=float, default=1.0)
    add("--resolution", type=float, help="spacing in µm/px (default: that of level 0)")
    add("--annotation_weighting", choices=WEIGHTINGS, default="balanced")
    add("--sample_processes", type=int, nargs="+", default=[1, 2], help="worker processes, one case each")
    add("--augment", action="store_true")
    add("--seconds", type=float, default=4.0, help="seconds of each measurement")
    add("--rounds", type=int, default=3)
    add(
        "--wholeslidedata", metavar="INTERPRETER", help="measure wholeslidedata in turns, in this interpreter"
    )
    return parser


class Measured(NamedTuple):
    rate: float  # patches per second
    cpu: float  # seconds of processor time per patch


class BareReader:
    """Reads given patches with nothing but libvips, each slide's region kept open."""

    def __init__(self, pairs: list[SlidePair]) -> None:
        self._regions = {
            pair.name: pyvips.Region.new(pyvips.Image.new_from_file(str(pair.slide), access="random"))
            for pair in pairs
        }

    def measure(self, patches: Iterator[PatchInfo], seconds: float) -> Measured:
        begin, begin_cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < seconds:
            patch = next(patches)
            self._regions[patch.slide].fetch(patch.x_l0, patch.y_l0, patch.size_l0, patch.size_l0)
            count += 1
        return Measured(count / (time.perf_counter() - begin), (time.process_time() - begin_cpu) / count)


def measure(loader: Loader, batches: Iterator[Batch], ahead: int, seconds: float) -> Measured:
    """Measure a loader. The `ahead` batches that lie ready do not count."""
    for _ in range(ahead):
        next(batches)
    begin, begin_cpu, count = time.perf_counter(), cpu_seconds(loader), 0
    while time.perf_counter() - begin < seconds:
        count += len(next(batches).patches)
    return Measured(count / (time.perf_counter() - begin), (cpu_seconds(loader) - begin_cpu) / count)


def wholeslidedata_of(options: argparse.Namespace, pairs: list[SlidePair]) -> Side:
    """Start the process that measures wholeslidedata on the same slides. SystemExit: their outlines are not XML."""
    labelled = [pair for pair in pairs if pair.label]
    if options.label_format != "xml":
        raise SystemExit(
            "--wholeslidedata reads outlines in ASAP XML: give --label_format xml and their folder."
        )
    with Slide(labelled[0].slide) as slide:
        spacing = options.resolution or slide.spacing
    case = {
        "slides": [[str(pair.slide), str(pair.label)] for pair in labelled],
        "spacing": spacing,
        "img_size": options.img_size,
        "batch_size": options.batch_size,
        "seed": 0,
        "seconds": options.seconds,
        "warm_up": 20 * len(labelled) // options.batch_size,
    }
    program = Path(__file__).with_name("sampler_peer.py")
    return Side([options.wholeslidedata, str(program), json.dumps(case)])


def cpu_seconds(loader: Loader) -> float:
    """Return the processor time of the loader's workers in seconds."""
    times = [psutil.Process(pid).cpu_times() for pid in loader.worker_pids]
    return float(sum(t.user + t.system for t in times))


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    pairs, _ = find_pairs(options.slide_path, options.label_path, options.slide_format, options.label_format)
    peer = wholeslidedata_of(options, pairs) if options.wholeslidedata else None
    config = SamplerConfig(
        sampler=options.data_sampler,
        img_size=options.img_size,
        batch_size=options.batch_size,
        batch_tumor_ratio=options.batch_tumor_ratio,
        resolution=options.resolution,
        annotation_weighting=options.annotation_weighting,
        augment=options.augment,
    )
    places: list[PatchInfo] = []
    loaders: dict[int, Loader] = {}
    batches: dict[int, Iterator[Batch]] = {}
    for processes in options.sample_processes:
        loaders[processes] = training_loader(pairs, config, 0, 1, processes)
        batches[processes] = iter(loaders[processes])
        # Long enough that every worker has opened every slide.
        for _ in range(max(40, 20 * len(pairs) * processes // options.batch_size)):
            places += next(batches[processes]).patches
    reader, endless = BareReader(pairs), itertools.cycle(places)
    reader.measure(endless, 1.0)
    if peer:
        peer.answer()
    bare: list[Measured] = []
    found: dict[int, list[Measured]] = {processes: [] for processes in loaders}
    for _ in range(options.rounds):
        bare.append(reader.measure(endless, options.seconds))
        for processes, loader in loaders.items():
            ahead = processes * slot_count(options.batch_size, options.img_size, processes)
            found[processes].append(measure(loader, batches[processes], ahead, options.seconds))
        if peer:
            peer.measure()
    for loader in loaders.values():
        loader.close()
    first = options.sample_processes[0]
    for processes, values in found.items():
        result = {
            "data_sampler": options.data_sampler,
            "label_format": options.label_format,
            "img_size": options.img_size,
            "batch_size": options.batch_size,
            "resolution": options.resolution,
            "augment": options.augment,
            "sample_processes": processes,
            "patches_per_second": round(median(v.rate for v in values), 1),
            "bare_fetch_per_second": round(median(b.rate for b in bare), 1),
            "ratio_to_bare": round(median(v.rate / b.rate for v, b in zip(values, bare)), 3),
            "cpu_ratio_to_bare": round(median(b.cpu / v.cpu for v, b in zip(values, bare)), 3),
            f"ratio_to_{first}": round(median(v.rate / f.rate for v, f in zip(values, found[first])), 3),
        }
        if peer:
            result["wholeslidedata_per_second"] = round(median(p["rate"] for p in peer.found), 1)
            result["cpu_ratio_to_wholeslidedata"] = round(
                median(p["cpu"] / v.cpu for v, p in zip(values, peer.found)), 1
            )
        result["cpu_ms_per_patch"] = round(1000 * median(v.cpu for v in values), 2)
        print(json.dumps(result))
    if peer:
        peer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
