"""What the label of a patch must show, and what it shows: sums that are those of the whole patch if parts are added."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from samplers.labels.label_map import IGNORED, shows_tumour


class Wanted(NamedTuple):
    """What the label of a patch must show.

    kind: a class that at least one pixel must have, or "tumour" (any class above 0), or "none" (no class above 0).
    min_known: the smallest share of the pixels that must be known.
    """

    kind: int | str
    min_known: float = 0.0


class Shown(NamedTuple):
    """What a label, or a part of it, shows: numbers of pixels and of known ones (all, if nobody asks), and whether
    some have tumour, or the class that is wanted."""

    pixels: int
    known: int
    tumour: bool
    has_class: bool

    @classmethod
    def by(cls, label: np.ndarray, wanted: Wanted) -> Shown:
        """Return what classes, uint8 (h, w), show."""
        known = int(np.count_nonzero(label != IGNORED)) if wanted.min_known else label.size
        found = not isinstance(wanted.kind, str) and bool((label == wanted.kind).any())
        return cls(label.size, known, bool(shows_tumour(label).any()), found)

    def with_part(self, other: Shown) -> Shown:
        """Return what both parts show together."""
        counts = self.pixels + other.pixels, self.known + other.known
        return Shown(*counts, self.tumour or other.tumour, self.has_class or other.has_class)

    def fits(self, wanted: Wanted) -> bool:
        """Return whether this is what was wanted, and known enough."""
        if wanted.min_known and self.known / self.pixels < wanted.min_known:
            return False
        if isinstance(wanted.kind, str):
            return self.tumour == (wanted.kind == "tumour")
        return self.has_class


class Claim(NamedTuple):
    """What the part of a label shows that was looked at, of which more may be wanted in the rest of it."""

    shown: Shown
    wanted: Wanted
