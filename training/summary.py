"""The texts that a run prints at its beginning and at its end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.trainer import Trainer


def start_summary(
    options: argparse.Namespace,
    environment: dict[str, str],
    trainer: Trainer,
    slides: tuple[int, int],
    labels: str,
    log_dir: Path,
) -> str:
    """Return one line per topic. `slides`: number of slides for training and validation; `labels`: what they show."""
    images = options.batch_size * options.accumulate_steps * trainer.world.group.count
    return lines(
        {
            "model": f"{options.model}, {trainer.model.count_params():,} parameters, {trainer.num_classes} classes",
            "slides": f"{slides[0]} for training, {slides[1]} for validation",
            "labels": labels,
            "patches": f"{options.img_size}², {options.data_sampler} sampler, {options.batch_size} per "
            f"{'rank' if options.ranks_per_patch == 1 else f'group of {options.ranks_per_patch} ranks'}",
            "ranks": environment["ranks"],
            "devices": environment["devices"],
            "dtype": options.mixed_precision,
            "steps": f"{options.num_steps:,} (images) in updates of {images}, validation every "
            f"{options.validate_every:,}",
            "log_dir": str(log_dir),
        }
    )


def end_summary(log_dir: Path) -> str:
    """Return a text that says where everything is."""
    return (
        f"TensorBoard: {tensorboard_command()} --logdir '{log_dir}'\n"
        f"pictures:    {log_dir / 'pictures'} and {log_dir / 'samples'}\n"
        f"report:      {log_dir / 'report.html'}\n"
        f"model:       {log_dir / 'model'}"
    )


def tensorboard_command() -> str:
    """Return the TensorBoard command of this environment, which need not be on the user's PATH."""
    path = Path(sys.executable).with_name("tensorboard")
    if not path.exists():
        return f"{sys.executable} -m tensorboard.main"
    return str(path.relative_to(Path.cwd())) if Path.cwd() in path.parents else str(path)


def lines(rows: dict[str, str], indent: str = "") -> str:
    return "\n".join(f"{indent}{name:9}{text}" for name, text in rows.items())


def count(number: int, thing: str) -> str:
    """3, "rank" → "3 ranks"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
