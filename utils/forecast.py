"""What a run of `--debug` says about the real one: its size, and time and memory from what was measured."""

from __future__ import annotations

import argparse
import resource
from datetime import timedelta
from pathlib import Path

from utils.ranks import Ranks
from utils.resume import read_metrics, read_splits

GB = 1e9


def forecast(options: argparse.Namespace, world: Ranks, log_dir: Path, parameters: int) -> str:
    """Collective. Lines that say what the command without `--debug` would do."""
    peaks = world.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if not world.is_first:
        return ""
    speed = {row["split"]: row["images_per_second"] for row in read_metrics(log_dir)}  # the last of each
    steps, patches = options.planned_steps, options.planned_validation_patches
    splits = read_splits(log_dir)
    updates = -(-steps // (options.batch_size * world.size * options.accumulate_steps))
    validations = max(1, steps // options.validate_every)
    seconds = steps / speed["train"] + validations * patches / speed["val"]
    newest = max((log_dir / "checkpoints").glob("step_*"))
    checkpoint = sum(file.stat().st_size for file in newest.iterdir())
    pixels = steps * options.img_size**2
    reduced = parameters * (2 if options.fp16_allreduce else 4) if world.size > 1 else 0
    lines = [
        f"without --debug, on {world.size} ranks like these:",
        f"  {len(splits['train'])} slides for training, {len(splits['val'])} for validation",
        f"  {steps} steps (patches) in {updates} updates, {validations} validations of at most {patches} patches",
        f"  about {timedelta(seconds=round(seconds))} at {speed['train']:.1f} images/s in training and "
        f"{speed['val']:.1f} in validation, start and export not counted",
        f"  {max(peaks) / GB:.1f} GB of memory a rank at its peak, {sum(peaks) / GB:.1f} GB on all of them, "
        "without the samplers' processes",
        f"  {3 * pixels / GB:.1f} GB of pixels cut out of slides, {reduced / 1e6:.1f} MB reduced an update and rank",
        f"  {checkpoint / 1e6:.0f} MB a checkpoint, {(options.keep_checkpoints + 1) * checkpoint / 1e6:.0f} MB kept",
    ]
    return "\n".join(lines)
