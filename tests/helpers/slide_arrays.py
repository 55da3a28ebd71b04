"""Numbers that several tests of slides share."""

from __future__ import annotations

import numpy as np

WIDTH, HEIGHT = 333, 251


FACTORS = (1, 2.5, 3, 7)


GARBAGE = [b"\0", b"\xff", np.random.default_rng(0).bytes(4000)]
