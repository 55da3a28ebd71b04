"""Chooses the slides of --validate_slides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from samplers.pairs.names import name_some, slide_of_patch
from samplers.pairs.pairing import SlidePair
from utils.cli import UserError


def choose_slides(options: argparse.Namespace, pairs: Sequence[SlidePair]) -> list[SlidePair]:
    """Return the validation slides that --validate_slides asks for; none without the option.

    A number takes slides with a label and slides without one in turn, by --seed. UserError: a name is not that of a
    validation slide, or these are patches.
    """
    words: list[str] | None = options.validate_slides
    if words is None:
        return []
    patches = [pair.name for pair in pairs if slide_of_patch(pair.name)]
    if patches:
        raise UserError(
            f"--validate_slides takes whole slides, but those for validation are patches: {name_some(patches)}"
        )
    by_name = {pair.name: pair for pair in pairs}
    if len(words) == 1 and words[0].isdecimal() and words[0] not in by_name:
        rng = np.random.default_rng(options.seed)
        kinds = [[p for p in pairs if p.label], [p for p in pairs if not p.label]]
        shuffled = [[kind[i] for i in rng.permutation(len(kind))] for kind in kinds]
        turns = max(map(len, kinds))
        in_turn = [kind[turn] for turn in range(turns) for kind in shuffled if turn < len(kind)]
        return in_turn[: int(words[0])]
    unknown = [word for word in words if word not in by_name]
    if unknown:
        raise UserError(
            f"--validate_slides: {name_some(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the slides for "
            f"validation, which are {name_some(by_name)}"
        )
    return [by_name[word] for word in dict.fromkeys(words)]
