"""The progress bar of a run and the lines that it prints. On rank 0 only."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm

from training.metrics import mean_iou
from training.progress import Interval
from utils.ranks.launcher import terminal_columns

_PIPE_SECONDS = 0.05
# No elapsed time where it would push the scores off a narrow terminal.
_WIDE = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
_NARROW = "{n_fmt}/{total_fmt}|{bar}| {remaining} left{postfix}"
_WIDE_COLUMNS = 110


def short(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def line_of(step: int, split: str, values: dict[str, Any]) -> str:
    """Return the line that is printed of an object of metrics.jsonl."""
    if split != "slides":
        return (
            f"step {step:>7} {split:<5} loss {short(values.get('loss'))}  mIoU {short(values.get('miou'))}  "
            f"{values.get('images_per_second', 0):.1f} images/s"
        )
    return (
        f"step {step:>7} slides FROC {short(values['froc_corrected'])}  AUC {short(values['slide_auc'])}  mIoU "
        f"{short(values['slide_miou'])}  Dice {short(values['slide_dice'])}  {len(values['slides'])} of "
        f"{values['slides_asked']} whole slides in {values['seconds']:.0f} s"
    )


class RunBar:
    """A bar of `num_steps` steps that begins at `step`. It is shown on a terminal only; not `shown`, it is silent."""

    def __init__(self, shown: bool, num_steps: int, step: int = 0) -> None:
        columns = terminal_columns() if shown else 0
        self.shown = shown
        self.tty = columns > 0
        self.scores = ""  # of the last batch
        self.bar = tqdm(
            total=num_steps,
            initial=step,
            smoothing=0,  # so that the time left counts the validations that are to come
            disable=not self.tty,
            ncols=columns,
            bar_format=_WIDE if columns >= _WIDE_COLUMNS else _NARROW,
        )

    def progress(self, step: int, loss: float, interval: Interval, wait: float) -> None:
        """Move the bar to `step`, with the loss of this batch and the mIoU and speed since the last log.

        `wait`: seconds since the last log that were spent waiting for data.
        """
        if not self.tty:
            return
        seconds = interval.clock.seconds
        rate, miou = (step - interval.start_step) / seconds, mean_iou(interval.counts.confusion)
        wide = self.bar.ncols >= _WIDE_COLUMNS
        self.scores = (
            f"{rate:.1f} {'images' if wide else 'img'}/s, loss {loss:.3f}, mIoU {short(miou, 3)}, "
            f"{'data wait' if wide else 'wait'} {wait / seconds:.0%}"
        )
        self.bar.set_postfix_str(self.scores, refresh=False)
        self.bar.update(min(step, self.bar.total) - self.bar.n)

    def now(self, what: str) -> None:
        """Show what the run is doing while the bar stands still."""
        if self.tty:
            self.bar.set_postfix_str(what)

    def close(self) -> None:
        """End the bar with the last scores on it."""
        if self.tty:
            self.now(self.scores)
            self.tty = False
        self.bar.close()

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if not self.shown:
            return
        with tqdm.external_write_mode():
            # The bar and the line go through two pipes of the launcher, which keep no order between them.
            time.sleep(_PIPE_SECONDS if self.tty else 0)
            print(line, flush=True)
            time.sleep(_PIPE_SECONDS if self.tty else 0)
