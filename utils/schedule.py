"""The learning rate as a function of the step: a warm-up from 0, then a named schedule."""

from __future__ import annotations

import math
from typing import Callable


def constant(progress: float) -> float:
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "constant": constant}


def learning_rate(step: int, num_steps: int, warmup_steps: int, peak: float, schedule: str) -> float:
    """The rate for the update that starts at `step` (images seen so far) of `num_steps`.

    Rises linearly over `warmup_steps` (Goyal et al., arXiv 1706.02677, section 2.2), never 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return peak * SCHEDULES[schedule](min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps)))
