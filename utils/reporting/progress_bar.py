"""Shows the progress of programs that work through slides."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from utils.ranks.launcher import launcher_rank, terminal_columns

T = TypeVar("T")
LINES_EVERY = 30.0  # seconds between two lines where there is no terminal, for example in the log of a job

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} slides [{elapsed}<{remaining}{postfix}]"


class SlideBar:
    """A bar with slides, patches/s and the time left, for a `with`. Visible only on a terminal and if `shown`."""

    def __init__(self, what: str, slides: int, shown: bool) -> None:
        columns = terminal_columns() if shown else 0
        self.bar = tqdm(total=slides, desc=what, bar_format=_FORMAT, ncols=columns, disable=not columns)
        self.patches, self.start = 0, time.monotonic()

    def advance(self, slides: float, patches: int) -> None:
        """Move on by some slides, or by a share of one, and by the patches that were done."""
        self.patches += patches
        rate = self.patches / max(1e-9, time.monotonic() - self.start)
        self.bar.set_postfix_str(f"{rate:.1f} patches/s", refresh=False)
        self.bar.update(slides)

    def __enter__(self) -> SlideBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()


def shown(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterable[T]:
    """Return the items, whose number is `total`, and show on rank 0 how far their consumer is.

    That is a bar on a terminal. Elsewhere it is a line every 30 s, so that what takes less says nothing.
    """
    rank, size = launcher_rank()
    total = len(items) if total is None and isinstance(items, Collection) else total
    what += f" (rank 0 of {size})" if size > 1 else ""
    if rank > 0:
        return items
    if terminal_columns():
        return tqdm(items, what, total, unit=unit)
    layout = f"{{desc}}: {{n}} of {{total}} {unit}s, {{elapsed}} (about {{remaining}} to go)"
    waits = {"mininterval": LINES_EVERY, "maxinterval": LINES_EVERY, "delay": LINES_EVERY, "miniters": 1}
    return tqdm(items, what, total, bar_format=layout, file=_Lines(), **waits)


class _Lines:
    """A file in which each state of a bar is a line, instead of overwriting the one before."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()
