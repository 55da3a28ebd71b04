"""The classes of annotation groups and of the values of a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.cli import UserError

NO_GROUP = "None"  # ASAP's name for the group of an outline that belongs to none
# In this order, because exclusions lie inside lesions. CAMELYON16: _0, _1, _2; CAMELYON17: metastases, normal.
DEFAULT_GROUPS = (
    *(("_0", 1), ("_1", 1), ("Tumor", 1), ("metastases", 1)),
    *(("_2", 0), ("normal", 0), ("Exclusion", 0), (NO_GROUP, 0)),
)
IGNORED = 255  # in the place of a class: what the pixel shows is not known, so it counts nowhere
_IGNORE = "ignore"  # the same in --label_map and --unannotated
UNANNOTATED = {"background": 0, _IGNORE: IGNORED}  # the choices of --unannotated


@dataclass(frozen=True)
class LabelMap:
    """The class of each annotation group, in the order of painting. Annotations of other groups are left out.

    For a mask, a group that is a number is a pixel value (`255:1`). Without any number, all values but 0 are class 1.
    `unannotated` is the class of what no annotation covers, and of the value 0 of a mask unless 0 is a group: 0 or
    IGNORED.
    """

    groups: tuple[tuple[str, int], ...] = DEFAULT_GROUPS
    unannotated: int = 0

    @property
    def num_classes(self) -> int:
        """The largest class + 1, at least 2."""
        return max([2, *(value + 1 for _, value in self.groups if value != IGNORED)])

    @property
    def ignores(self) -> bool:
        """Whether a label can have pixels that are not known (IGNORED)."""
        return self.unannotated == IGNORED or any(value == IGNORED for _, value in self.groups)

    @property
    def names_no_group(self) -> bool:
        """Whether the class of outlines that belong to no group was asked for, and not only taken by default."""
        return self.groups != DEFAULT_GROUPS and any(group == NO_GROUP for group, _ in self.groups)

    @classmethod
    def parse(cls, items: Sequence[str] | None, unannotated: str = "background") -> LabelMap:
        """Return the label map that `["_0:1", "_2:0", "blurred:ignore"]` describes, the default one for no items.

        `unannotated` is a key of UNANNOTATED. Raises UserError, which names the wrong item.
        """
        groups: dict[str, int] = {}
        for item in items or ():
            group, _, value = item.rpartition(":")
            number = int(value) if re.fullmatch("[0-9]{1,3}", value) else 255
            if not group or (number > 254 and value != _IGNORE):
                raise UserError(
                    f"label map: {item!r} is not GROUP:CLASS with a class of 0 to 254, or GROUP:{_IGNORE}"
                )
            if group in groups:
                raise UserError(f"label map: {item!r}: the group is there twice")
            groups[group] = IGNORED if value == _IGNORE else number
        label_map = cls(tuple(groups.items())) if groups else cls()
        return replace(label_map, unannotated=UNANNOTATED[unannotated])

    def values(self) -> np.ndarray:
        """Return the class of each value of a mask: uint8 (256,)."""
        numbers = {int(group): value for group, value in self.groups if group.isdecimal()}
        pixel_values = {number: value for number, value in numbers.items() if number < 256}
        table = np.zeros(256, np.uint8)
        table[0] = self.unannotated
        if not pixel_values:
            table[1:] = 1
        for pixel_value, value in pixel_values.items():
            table[pixel_value] = value
        return table

    def named(self) -> np.ndarray:
        """Return which values of a mask have a class: bool (256,). All, unless a group is a number; 0 always."""
        numbers = [int(group) for group, _ in self.groups if group.isdecimal()]
        named = np.full(256, not any(number < 256 for number in numbers))
        named[[0, *(number for number in numbers if number < 256)]] = True
        return named


def swapped_classes(label_map: LabelMap) -> str | None:
    """Return a warning if a group that is known to be tumour has class 0; None if none has."""
    usual = dict(DEFAULT_GROUPS)
    groups = dict(label_map.groups)
    as_other = [group for group, value in groups.items() if value == 0 and usual.get(group) == 1]
    if not as_other:
        return None
    as_tumour = [group for group, value in groups.items() if 0 < value < IGNORED and usual.get(group) == 0]
    also = f", and {', '.join(as_tumour)}, which are not, a class above 0" if as_tumour else ""
    meant = {**groups, **{group: usual[group] for group in groups if group in usual}}
    ordered = sorted(meant.items(), key=lambda item: item[1] == 0)  # exclusions are painted last
    return (
        f"--label_map gives {', '.join(as_other)}, which are tumour, class 0, which is background{also}. Probably "
        f"meant: --label_map {' '.join(f'{group}:{_IGNORE if v == IGNORED else v}' for group, v in ordered)}"
    )


def shows_tumour(classes: np.ndarray) -> np.ndarray:
    """Return where uint8 classes are above 0 and known: bool of the same shape."""
    return np.asarray(classes - np.uint8(1) < IGNORED - 1)  # 0 becomes 255, and 255 becomes 254


def class_names(label_map: Sequence[str] | None, num_classes: int) -> list[list[str]]:
    """Return the names of each class, at least one: its groups in --label_map that are not pixel values nor NO_GROUP.

    Without a label map these are "other" and "Tumor". A class without a name is "other" (class 0) or "class_<number>".
    """
    groups = LabelMap.parse(label_map).groups if label_map else (("other", 0), ("Tumor", 1))
    named = [(group, number) for group, number in groups if not group.isdecimal() and group != NO_GROUP]
    names = [[group for group, number in named if number == value] for value in range(num_classes)]
    return [found or [f"class_{value}" if value else "other"] for value, found in enumerate(names)]
