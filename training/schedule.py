"""The learning rate as a function of the step: a warm-up from 0, then a named schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

CYCLES = 4
POWER = 0.9


def constant(progress: float) -> float:
    return 1.0


def cosine(progress: float) -> float:
    """Return half a cosine from 1 to 0 (arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def polynomial(progress: float) -> float:
    """Return (1 - progress)^0.9, as DeepLab was trained (arXiv 1606.00915, section 4.1)."""
    return max(0.0, 1 - progress) ** POWER


def cyclic(progress: float) -> float:
    """Return four triangles from 0.1 to 1, each half as high as the one before (arXiv 1506.01186, "triangular2")."""
    cycle = min(CYCLES - 1, int(progress * CYCLES))
    place = progress * CYCLES - cycle  # 0 to 1
    return 0.1 + 0.9 * (1 - abs(2 * place - 1)) / 2**cycle


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "constant": constant,
    "polynomial": polynomial,
    "cyclic": cyclic,
}
SCALINGS: dict[str, Callable[[int], float]] = {
    "linear": float,  # Goyal et al., arXiv 1706.02677
    "sqrt": math.sqrt,  # with Adam's kind (arXiv 1404.5997)
    "none": lambda ranks: 1.0,
}


def learning_rate(
    step: int, num_steps: int, warmup_steps: int, peak: float, schedule: str, restart: float = 0
) -> float:
    """Return the learning rate of the update that starts at `step` (images seen so far) of `num_steps`.

    Rises linearly over `warmup_steps` (Goyal et al., arXiv 1706.02677, section 2.2), never 0, and does so again
    from step `restart` on: with batch norm frozen, the network is another function than the one trained so far.
    """
    warm = step - (restart if step >= restart else 0)
    factor = (warm + 1) / (warmup_steps + 1) if warm < warmup_steps else 1.0
    if step >= warmup_steps:
        factor *= SCHEDULES[schedule](min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps)))
    return peak * factor
