"""Splits slides into training and validation, and finds patients and slides in the names of files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from samplers.pairs.pairing import SlidePair
from samplers.slides.errors import DataError
from utils.cli import UserError


def split_pairs(
    pairs: Sequence[SlidePair], val_split: float, seed: int
) -> tuple[list[SlidePair], list[SlidePair]]:
    """Return training and validation pairs; the fraction `val_split` of the slides is for validation.

    The split depends on `seed` and the names, not on the order of the pairs, which both parts keep. All nodes of a
    CAMELYON17 patient and all patches of a slide are in one part. Slides with a label are split separately from the
    others, so that both parts have some if there are two. Raises UserError if there is nothing to split.
    """
    if not 0 <= val_split < 1:
        raise UserError(f"the validation split is {val_split}, it must be at least 0 and less than 1")
    if val_split == 0:
        return list(pairs), []
    groups: dict[str, list[SlidePair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: (pair.name, str(pair.slide))):
        groups[patient_of(pair.name) or slide_of_patch(pair.name) or str(pair.slide)].append(pair)
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


def patient_of(name: str) -> str | None:
    """Return the patient in a CAMELYON17 name, also in the name of a patch: `patient_017_node_4` gives "017"."""
    found = re.search(r"patient_(\d+)_node_\d+", name)
    return found.group(1) if found else None


def slide_of_patch(name: str) -> str | None:
    """Return the slide in the name of a preprocessed patch, `tumor_center_<center>_<slide>_<x>_<y>`."""
    found = re.fullmatch(r"tumor_center_(?:\d+|na)_(.+)_\d+_\d+", name)
    return found.group(1) if found else None
