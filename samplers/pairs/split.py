"""Splits slides into training and validation, such that no patient is on both sides."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from samplers.pairs.names import patient_of, slide_of_patch
from samplers.pairs.pairing import SlidePair
from samplers.slides.errors import DataError
from utils.cli import UserError


def split_pairs(
    pairs: Sequence[SlidePair], val_split: float, seed: int, patients: re.Pattern[str] | None = None
) -> tuple[list[SlidePair], list[SlidePair]]:
    """Return training and validation pairs; the fraction `val_split` of the slides is for validation.

    The split depends on `seed` and the names, not on the order of the pairs, which both parts keep. All slides of a
    patient (`patient_of`, with the pattern `patients`) and all patches of a slide are in one part. Slides with a label
    are split separately from the others, so that both parts have some if there are two. Raises UserError if there is
    nothing to split.
    """
    if not 0 <= val_split < 1:
        raise UserError(f"the validation split is {val_split}, it must be at least 0 and less than 1")
    if val_split == 0:
        return list(pairs), []
    groups: dict[str, list[SlidePair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: (pair.name, str(pair.slide))):
        groups[group_of(pair, patients)].append(pair)
    if len(groups) < 2:
        raise DataError(f"{len(groups)} slides or patients cannot be split for validation, 2 are needed")
    rng = np.random.default_rng(seed)
    labelled = [group for group in groups.values() if any(pair.label for pair in group)]
    normal = [group for group in groups.values() if not any(pair.label for pair in group)]
    chosen = []
    for kind in (labelled, normal):
        count = min(max(round(val_split * len(kind)), 1), len(kind) - 1) if len(kind) > 1 else 0
        chosen += [kind[i] for i in rng.permutation(len(kind))[:count]]
    if not chosen:  # there is one group of each kind
        chosen = [normal[0]]
    val = {pair for group in chosen for pair in group}
    return [pair for pair in pairs if pair not in val], [pair for pair in pairs if pair in val]


def group_of(pair: SlidePair, patients: re.Pattern[str] | None = None) -> str:
    """Return what must stay on one side: the patient, else the slide that a patch is of, else the slide itself."""
    patient = patient_of(pair.name, patients)
    return f"patient {patient}" if patient else slide_of_patch(pair.name) or str(pair.slide.absolute())
