"""Divides slides into folds for cross-validation, such that no patient (or no medical centre) is in two of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from samplers.pairs.camelyon import center_of
from samplers.pairs.names import name_some
from samplers.pairs.pairing import SlidePair
from samplers.pairs.split import group_of
from samplers.slides.errors import DataError


def fold_pairs(
    pairs: Sequence[SlidePair],
    folds: int,
    fold: int,
    seed: int,
    by: str = "patient",
    patients: re.Pattern[str] | None = None,
) -> tuple[list[SlidePair], list[SlidePair]]:
    """Return the pairs for training and for validation of fold number `fold`, from 1 to `folds`.

    Each pair is for validation in one fold. The folds depend on `seed` and the names, not on the order of the pairs,
    which both parts keep. All slides of a patient (`split.group_of`, with the pattern `patients`), or of a centre if
    `by` is "center", are in one fold; slides with a label and those without one are spread over the folds as evenly as
    that allows. DataError: there are fewer patients or centres than folds, or a centre is not known.
    """
    ordered = sorted(pairs, key=lambda pair: (pair.name, str(pair.slide)))
    groups = [_center(pair) if by == "center" else group_of(pair, patients) for pair in ordered]
    if len(set(groups)) < folds:
        what = "centres" if by == "center" else "patients"
        raise DataError(f"--folds {folds} needs as many {what}, but the slides are of {len(set(groups))}")
    labelled = [pair.label is not None for pair in ordered]
    with warnings.catch_warnings():  # of a kind of slides of which there are fewer than folds
        warnings.simplefilter("ignore", UserWarning)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = [part for _, part in splitter.split(np.zeros(len(ordered)), labelled, groups)]
    val = {ordered[i] for i in parts[fold - 1]}
    if not val:
        raise DataError(f"fold {fold} of {folds} has no slides: take fewer --folds")
    return [pair for pair in pairs if pair not in val], [pair for pair in pairs if pair in val]


def _center(pair: SlidePair) -> str:
    center = center_of(pair.slide)
    if center is None:
        raise DataError(
            "--folds_by center: the centre of a slide is unknown, there is no center_N in its path and no patient_XXX "
            f"in its name: {name_some([pair.slide])}"
        )
    return f"center {center}"
