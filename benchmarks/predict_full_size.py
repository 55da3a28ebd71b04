"""Measures memory, disk and time of predict.py on a slide of 97,280 × 215,040 pixels, with a network that takes none.

    python benchmarks/predict_full_size.py --folder /tmp/full_size --tissue 0.2

The slide is that of `full_size.py`, with its tissue shrunk to the given share of its width and height. Each line is a
JSON object: one per part of the work, with its seconds on the clock and of the processor and the peak RSS until then,
and a last one with the peak of what .work takes on the disk and of the sizes of its files, in GB. With --kill_after the
program is killed and started again, and the line says how many patches the second run had left.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import predict
import prediction.work
from benchmarks.full_size import make_slide

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    "cells_of",
    "lesions_of",
    "remove_small",
    "write_tiff",
    "write_geojson",
    "write_asap",
    "write_overlay",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the slide is, or is made, and the output")
    add("--tissue", type=float, default=0.2, help="share of the slide's sides that tissue takes")
    add("--img_size", default="1024")
    add("--threshold", default="0.7")
    add("--kill_after", type=float, help="seconds from the first note of progress on")
    return parser


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same and prints how long it took."""

    def run(*words: Any, **named: Any) -> Any:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        try:
            return function(*words, **named)
        finally:
            wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            found = {"s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_rss_gb": round(peak, 2)}
            print(json.dumps({"part": name, **found}), flush=True)

    return run


def watch(folder: Path, peak: dict[str, float]) -> None:
    """Note every second what the files of a folder take on the disk and what their sizes are, in GB."""
    while True:
        sizes = []
        for path in folder.glob("**/*"):
            try:
                sizes.append(path.stat())
            except FileNotFoundError:
                continue
        for name, total in (
            ("disk_gb", sum(size.st_blocks for size in sizes) * 512),
            ("apparent_gb", sum(size.st_size for size in sizes)),
        ):
            peak[name] = max(peak.get(name, 0), round(total / 1e9, 3))
        time.sleep(1)


def kill_and_go_on(seconds: float, words: Sequence[str], output: Path) -> None:
    """Kill predict.py some seconds after its first note of progress, start it again, and print what was left to do."""
    command = [sys.executable, "-u", predict.__file__, *words]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(output.glob(".work/*.rows/*")) and first.poll() is None:
        time.sleep(0.1)
    time.sleep(seconds)
    first.kill()
    first.wait()
    notes = {path.name: int(path.read_text()) for path in output.glob(".work/*.rows/*")}
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    patches = sum(
        map(int, re.findall(r"(\d+) patches in", done.stdout))
    )  # none if only the files were missing
    (record,) = (json.loads(path.read_text()) for path in output.glob("slides/*.json"))
    print(
        json.dumps(
            {"finished_rows": notes, "patches": record["patches"], "patches_of_the_second_run": patches}
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    pair = make_slide(options.folder, 97_280, 215_040, options.tissue)
    model, output = options.folder / "blurred", options.folder / "predictions"
    if not model.exists():
        subprocess.run(
            [sys.executable, "-m", "tests.helpers.toy_predictors", "blurred", model], check=True, cwd=ROOT
        )
    words = ["--model_path", str(model), "--slide_path", str(pair.slide), "--output", str(output), "--no_cuda",
             "--img_size", options.img_size, "--threshold", options.threshold]  # fmt: skip
    shutil.rmtree(output, ignore_errors=True)
    if options.kill_after is not None:
        kill_and_go_on(options.kill_after, words, output)
        return 0
    for name in PARTS:
        setattr(prediction.work, name, timed(name, getattr(prediction.work, name)))
    prediction.work.predict_band = timed("predict_band", prediction.work.predict_band)
    peak: dict[str, float] = {}
    threading.Thread(target=watch, args=(output / ".work", peak), daemon=True).start()
    code = timed("all", predict.main)(words)
    print(json.dumps(peak))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
