"""Shows the progress of programs that work through slides."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from utils.ranks.launcher import terminal_columns

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
