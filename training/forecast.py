"""Tells after a run with `--debug` how large the whole run is, and how much time and memory it will take."""

from __future__ import annotations

import resource
from datetime import timedelta
from typing import TYPE_CHECKING

import tensorflow as tf

from training.plan import slides_every
from training.resume import read_splits
from training.summary import count, lines

if TYPE_CHECKING:
    from training.loop import Loop

GB = 1e9


def forecast(loop: Loop) -> str:
    """Collective: return lines that say what the command without `--debug` would do, from what this run measured."""
    options, world, log_dir = loop.options, loop.world, loop.log_dir
    laps, validated = {"train": loop.laps, "val": loop.validator.laps}, loop.validator.patches
    peaks = world.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    gpus = world.gather([tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i, _ in
                         enumerate(tf.config.list_logical_devices("GPU"))])  # fmt: skip
    if not world.is_first:
        return ""
    steps, most = options.planned_steps, options.planned_validation_patches
    patches = validated if validated < options.validation_patches else most  # else there may be more
    splits = read_splits(log_dir)
    images = options.batch_size * world.group.count * options.accumulate_steps
    pace = {split: options.batch_size * world.group.count / found.usual for split, found in laps.items()}
    updates = -(-steps // images)
    validations = -(-steps // options.validate_every)  # at its end as well
    times = updates * images / pace["train"], validations * patches / pace["val"]
    newest = max((log_dir / "checkpoints").glob("step_*"))
    checkpoint = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
    model = sum(file.stat().st_size for file in (log_dir / "model").rglob("*") if file.is_file()) / 1e6
    reduced = loop.trainer.model.count_params() * (2 if options.fp16_allreduce else 4) / 1e6
    gpu = f", {max(sum(peak) for peak in gpus) / GB:.1f} GB of its GPU" if any(gpus) else ""
    kept = options.keep_checkpoints + 1  # and the best
    rows = {
        "slides": f"{len(splits['train'])} for training, {len(splits['val'])} for validation",
        "patches": f"{steps:,} of {options.img_size}² for training (= steps), {patches:,} per validation",
        "steps": f"{updates:,} updates of {images} patches, {count(validations, 'validation')}",
        "time": f"about {_time(sum(times))}: training {_time(times[0])} at {pace['train']:.1f} patches/s, "
        f"validation {_time(times[1])} at {pace['val']:.1f}; start and export not counted",
        **whole_slides(loop),
        "memory": f"{max(peaks) / GB:.1f} GB per rank at its peak{gpu}; {sum(peaks) / GB:.1f} GB on all ranks, the "
        "samplers' processes not counted",
        "read": f"{3 * steps * options.img_size**2 / GB:.1f} GB of pixels cut out of slides for training",
        "network": f"{reduced:.1f} MB of gradients per update and rank"
        if world.size > 1
        else "none, one process",
        "disk": f"{checkpoint:.0f} MB per checkpoint, of which at most {kept} are kept; {model:.0f} MB for the model",
    }
    first = f"the same without --debug, on {count(world.size, 'rank')} like {'these' if world.size > 1 else 'this'}:"
    return f"{first}\n{lines(rows, '  ')}"


def whole_slides(loop: Loop) -> dict[str, str]:
    """Return the line about --validate_slides, none without it."""
    options = loop.options
    if loop.slides is None:
        return {}
    times = -(-options.planned_steps // slides_every(options, options.planned_steps))
    minutes = options.planned_slides_minutes
    return {
        "whole": f"{len(loop.slides.pairs)} slides in {count(times, 'validation')}, which take at most "
        f"{minutes:g} min each: {_time(60 * minutes * times)} more"
    }


def _time(seconds: float) -> str:
    return str(timedelta(seconds=max(1, round(seconds))))
