"""Matches the variables of a file to those of a model by name, and finds what does not go together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.weight_files import Stored
from models.weight_names import BACKBONE, CLASS_LAYERS, common_names, unit_of


@dataclass(frozen=True)
class Matches:
    """What `match` found. Names of variables are the model's."""

    values: dict[str, Stored]  # what the file has for the model's variables
    other_classes: dict[str, str]  # variables of the class layer → the file's, of another number of classes
    wrong: list[str]  # a phrase for each variable because of which the file cannot be used
    backbone: frozenset[str]  # all variables of the model's backbone


def match(stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]) -> Matches:
    """Match a file's variables to a model's, given as {name: shape}.

    The backbone has to be there whole, and so does each other unit (see `unit_of`) of which the file has a part: a
    convolution with another layer's statistics, or with none, computes nonsense. Wrong are also other shapes, parts
    of a unit that the model does not have, and two variables that could both be meant.
    """
    in_file, in_model = common_names(stored), {c: names[0] for c, names in common_names(shapes).items()}
    values: dict[str, Stored] = {}
    other_classes: dict[str, str] = {}
    wrong = []
    for common in in_file.keys() & in_model.keys():
        ours, theirs = in_model[common], in_file[common][0]
        rival = _rival(in_file[common], stored)
        if stored[theirs].shape == shapes[ours]:
            values[ours] = stored[theirs]
        elif common.startswith(CLASS_LAYERS):
            other_classes[ours] = theirs
        else:
            wrong.append(f"{theirs} is {stored[theirs].shape}, the model's {shapes[ours]}")
        if rival:
            wrong.append(f"{theirs} and {rival} could both be meant")
    if values:
        wrong += _incomplete(in_file, in_model)
    backbone = frozenset(name for common, name in in_model.items() if unit_of(common) == BACKBONE)
    return Matches(values, other_classes, sorted(wrong), backbone)


def _rival(names: list[str], stored: Mapping[str, Stored]) -> str:
    """Return another variable that the same variable of a model could be loaded from, "" if there is none.

    An optimizer's averages are none: their names are longer at the front ("Adam/m/<name>").
    """
    first = _plain(names[0])
    rivals = [
        name
        for name in names[1:]
        if stored[name].key != stored[names[0]].key and not _plain(name).endswith(f"/{first}")
    ]
    return rivals[0] if rivals else ""


def _incomplete(in_file: Mapping[str, list[str]], in_model: Mapping[str, str]) -> list[str]:
    """Return a phrase for each variable that the file lacks or the model has no place for, in units that both have."""
    units_in_file, units_in_model = {unit_of(c) for c in in_file}, {unit_of(c) for c in in_model}
    missing = [
        f"{in_model[common]} is missing in the file"
        for common in sorted(in_model.keys() - in_file.keys())
        if unit_of(common) in units_in_file | {BACKBONE}
    ]
    surplus = [
        f"{in_file[common][0]} has no place in the model"
        for common in sorted(in_file.keys() - in_model.keys())
        if unit_of(common) in units_in_model and not _is_slot(common, in_model)
    ]
    return missing + surplus


def _is_slot(common: str, in_model: Iterable[str]) -> bool:
    """Return whether this is an optimizer's value of a variable: "<name>/Momentum"."""
    return common.rpartition("/")[0] in in_model or "/.OPTIMIZER_SLOT/" in common


def _plain(name: str) -> str:
    return re.sub(r":\d+$", "", name)
