"""The classes of annotation groups and of the values of a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.cli import UserError

# In this order, because exclusions lie inside lesions. CAMELYON16: _0, _1, _2; CAMELYON17: metastases, normal.
DEFAULT_GROUPS = (
    *(("_0", 1), ("_1", 1), ("Tumor", 1), ("metastases", 1)),
    *(("_2", 0), ("normal", 0), ("Exclusion", 0), ("None", 0)),
)


@dataclass(frozen=True)
class LabelMap:
    """The class of each annotation group, in the order of painting. Annotations of other groups are left out.

    For a mask, a group that is a number is a pixel value (`255:1`). Without any number, all values but 0 are class 1.
    """

    groups: tuple[tuple[str, int], ...] = DEFAULT_GROUPS

    @property
    def num_classes(self) -> int:
        """The largest class + 1, at least 2."""
        return max(2, *(value + 1 for _, value in self.groups))

    @classmethod
    def parse(cls, items: Sequence[str] | None) -> LabelMap:
        """Return the label map that `["_0:1", "_2:0"]` describes, the default one for None or no items.

        Raises UserError, which names the wrong item.
        """
        groups: dict[str, int] = {}
        for item in items or ():
            group, _, value = item.rpartition(":")
            if not group or not re.fullmatch("[0-9]{1,3}", value) or int(value) > 254:
                raise UserError(f"label map: {item!r} is not GROUP:CLASS with a class of 0 to 254")
            if group in groups:
                raise UserError(f"label map: {item!r}: the group is there twice")
            groups[group] = int(value)
        return cls(tuple(groups.items())) if groups else cls()

    def values(self) -> np.ndarray:
        """Return the class of each value of a mask: uint8 (256,)."""
        numbers = {int(group): value for group, value in self.groups if group.isdecimal()}
        pixel_values = {number: value for number, value in numbers.items() if number < 256}
        table = np.zeros(256, np.uint8)
        if not pixel_values:
            table[1:] = 1
        for pixel_value, value in pixel_values.items():
            table[pixel_value] = value
        return table


def class_names(label_map: Sequence[str] | None, num_classes: int) -> list[list[str]]:
    """Return the names of each class, at least one: its groups in --label_map that are not pixel values.

    Without a label map these are "other" and "Tumor". A class without a name is "other" (class 0) or "class_<number>".
    """
    groups = LabelMap.parse(label_map).groups if label_map else (("other", 0), ("Tumor", 1))
    names = [[group for group, number in groups if number == value and not group.isdecimal()]
             for value in range(num_classes)]  # fmt: skip
    return [found or [f"class_{value}" if value else "other"] for value, found in enumerate(names)]
