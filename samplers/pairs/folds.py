"""Divides slides into folds for cross-validation, such that no patient (or no medical centre) is in two of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

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
    numbers = _dealt(ordered, groups, folds, np.random.default_rng(seed))
    val = {pair for pair, group in zip(ordered, groups) if numbers[group] == fold}
    return [pair for pair in pairs if pair not in val], [pair for pair in pairs if pair in val]


def _dealt(
    pairs: Sequence[SlidePair], groups: Sequence[str], folds: int, rng: np.random.Generator
) -> dict[str, int]:
    """Return the fold of each group, from 1 on; none is empty if there are as many groups.

    Groups with a label, and then those without one, go one by one, the largest first, to the fold that has the fewest
    slides of this kind, or of both if folds are alike. (Where all groups are alike, scikit-learn's StratifiedGroupKFold
    makes the same folds of every seed.)
    """
    sizes = Counter(groups)
    labelled = {group for pair, group in zip(pairs, groups) if pair.label is not None}
    found: dict[str, int] = {}
    total = np.zeros(folds, int)
    for kind in (sorted(labelled), sorted({*groups} - labelled)):
        of_kind = np.zeros(folds, int)
        shuffled = [kind[i] for i in rng.permutation(len(kind))]
        for group in sorted(shuffled, key=lambda group: -sizes[group]):
            fold = int(np.lexsort((total, of_kind))[0])
            found[group] = fold + 1
            of_kind[fold] += sizes[group]
            total[fold] += sizes[group]
    return found


def _center(pair: SlidePair) -> str:
    center = center_of(pair.slide)
    if center is None:
        raise DataError(
            "--folds_by center: the centre of a slide is unknown, there is no center_N in its path and no patient_XXX "
            f"in its name: {name_some([pair.slide])}"
        )
    return f"center {center}"
