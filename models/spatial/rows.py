"""Which rank has which rows of a patch and of its feature maps, and which rows a layer reads. Without TensorFlow.

Rows are counted in the whole feature map of a patch, from 0 at the top. A range has its start, but not its stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Range = tuple[int, int]

LOWEST = 2  # rows; where a strip would be lower, each rank has the whole feature map


@dataclass(frozen=True)
class Strips:
    """The division of a patch over ranks. `image`: the rows of the patch that each rank has, in order.

    A feature map is divided in proportion, so all feature maps of a height are divided alike. Where a rank would have
    fewer than `lowest` rows of it, each rank has all of them.
    """

    image: tuple[Range, ...]
    lowest: int = LOWEST

    def __post_init__(self) -> None:
        stops = [0, *(stop for _, stop in self.image)]
        if [start for start, _ in self.image] != stops[:-1] or sorted(set(stops)) != stops:
            raise ValueError(f"the rows {list(self.image)} are no division of a patch into strips")

    @property
    def height(self) -> int:
        """Return the number of rows of the patch."""
        return self.image[-1][1]

    def of(self, height: int) -> list[Range]:
        """Return the rows that each rank has of a feature map with `height` rows."""
        ranges = [
            (-(-start * height // self.height), -(-stop * height // self.height))
            for start, stop in self.image
        ]
        if min(stop - start for start, stop in ranges) < self.lowest and height != self.height:
            return [(0, height)] * len(ranges)
        return ranges

    def divides(self, height: int) -> bool:
        """Return whether ranks have different rows of a feature map with `height` rows."""
        return len(self.image) > 1 and self.of(height)[0] != (0, height)


@dataclass(frozen=True)
class Window:
    """A window of `size` rows (or columns) that moves by `stride`; the first one begins `before` the first row."""

    size: int
    stride: int
    before: int
    outputs: int

    @classmethod
    def of(cls, inputs: int, kernel: int, stride: int, dilation: int, padding: str) -> Window:
        """Return the window that TensorFlow moves over `inputs` rows. ValueError for another padding than its two."""
        size = (kernel - 1) * dilation + 1
        if padding == "valid":
            return cls(size, stride, 0, (inputs - size) // stride + 1)
        if padding != "same":
            raise ValueError(f"padding {padding!r} has no spatial form")
        outputs = -(-inputs // stride)
        return cls(size, stride, max((outputs - 1) * stride + size - inputs, 0) // 2, outputs)

    def reads(self, outputs: Range) -> Range:
        """Return the rows of the input that make the rows `outputs`, also those outside of the input."""
        start = outputs[0] * self.stride - self.before
        return start, start + (outputs[1] - outputs[0] - 1) * self.stride + self.size

    def reached_by(self, inputs: Range) -> Range:
        """Return the rows of the output whose windows the rows `inputs` are in: what a transposed convolution reads."""
        start = -(-(inputs[0] + self.before - self.size + 1) // self.stride)
        return start, (inputs[1] - 1 + self.before) // self.stride + 1


def overlap(a: Range, b: Range) -> Range:
    """Return the rows that are in both; an empty range has the same start and stop."""
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


def length(rows: Range) -> int:
    """Return the number of rows."""
    return rows[1] - rows[0]


@dataclass(frozen=True)
class Plan:
    """What one rank does in an exchange of rows, of which each rank has `have[k]` and needs `need[k]`.

    `own`: what it keeps of its rows; `sends` and `receives`: rows to and from each rank. The first row of `own` goes by
    the exchange as well, to itself, so that no rank's message is empty.
    """

    own: Range
    sends: tuple[Range, ...]
    receives: tuple[Range, ...]

    @classmethod
    def of(cls, rank: int, have: Sequence[Range], need: Sequence[Range]) -> Plan:
        """Return the plan of `rank`. ValueError if a rank needs none of its own rows."""
        if not all(length(overlap(mine, needed)) for mine, needed in zip(have, need)):
            raise ValueError(
                f"ranks have the rows {list(have)} and need {list(need)}: one needs none of its own"
            )
        own = overlap(have[rank], need[rank])
        first = own[0], own[0] + 1
        sends = [overlap(have[rank], needed) for needed in need]
        receives = [overlap(rows, need[rank]) for rows in have]
        sends[rank] = receives[rank] = first
        return cls(own, tuple(sends), tuple(receives))
