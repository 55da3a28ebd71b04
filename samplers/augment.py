"""Augments a training patch: one of the eight flips and quarter turns, and a jitter of the stain.

Tellez et al. 2018 (Whole-slide mitosis detection, table I, "HED-light") scale and shift the haematoxylin and eosin of
each pixel. The exact transform mixes the channels of each pixel in optical density, which takes longer than reading
the patch. Here it is projected onto the channels: for tissue with as much haematoxylin as eosin, a change of the stains
scales and shifts each channel's optical density, which takes one table of 256 values per channel.

"strong" is for a model that is trained on one centre and used on another (Tellez et al. 2019, arXiv 1902.06543: the
stronger, the better across centres). Between the centres of CAMELYON17 the mean density of a channel differs by a
quarter, that of blue in the opposite direction to that of red, which no change of the stains alone explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from samplers.slides.part import Part

# Optical density of the stains in red, green and blue (Ruifrok and Johnston 2001, table 1).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
BRIGHTNESS = 0.05  # the optical densities of all channels are shifted by ± this


class Jitter(NamedTuple):
    """The strengths of a stain jitter: half the widths of the uniform distributions that are drawn from."""

    stain: float  # the amount of each stain is multiplied by 1 ± this
    shift: float  # the optical density of each channel is shifted by ± this
    channel: float  # the optical density of each channel is multiplied by 1 ± this


JITTERS = {"none": None, "light": Jitter(0.15, 0.03, 0.0), "strong": Jitter(0.25, 0.06, 0.25)}

_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0)  # optical density of each intensity


@dataclass(frozen=True)
class Augmentation:
    """One augmentation, as it was drawn."""

    turn: int  # bits: flip along x, flip along y, then transpose
    table: np.ndarray  # the new value of each value of each channel, uint8 (1, 256, 3)

    @classmethod
    def draw(cls, rng: np.random.Generator, stain_jitter: str = "light") -> Augmentation:
        """Draw an augmentation. `stain_jitter` is a key of JITTERS."""
        jitter = JITTERS[stain_jitter]
        if jitter is None:
            same = np.arange(256, dtype=np.uint8)
            return cls(int(rng.integers(8)), np.stack([same] * 3, axis=-1)[None])
        stains = rng.uniform(1 - jitter.stain, 1 + jitter.stain, size=2)
        gain = stains @ STAINS / STAINS.sum(axis=0)  # (3,): red, green, blue
        shift = rng.uniform(-jitter.shift, jitter.shift, size=3) + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        turn = int(rng.integers(8))
        gain = gain * rng.uniform(1 - jitter.channel, 1 + jitter.channel, size=3)
        table = 255 * np.exp(-(_DENSITY[:, None] * gain + shift))  # (256, 3)
        return cls(turn, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])

    def source_of(self, start: int, stop: int, size: int) -> Part:
        """Return the part of the patch, before it is augmented, that becomes its rows `start` to `stop`.

        The patch is a square of `size` pixels.
        """
        # Of a transposed patch a row was a column, which a flip along x has moved, otherwise one along y.
        if self.turn & (1 if self.turn & 4 else 2):
            start, stop = size - stop, size - start
        return Part(0, size, start, stop) if self.turn & 4 else Part(start, stop, 0, size)

    def image(self, image: np.ndarray, out: np.ndarray) -> None:
        """Write the augmented image, uint8 (h, w, 3), to `out`: a patch, or a part as `source_of` gives it."""
        _turn(cv2.LUT(image, self.table), self.turn, out)

    def label(self, label: np.ndarray, out: np.ndarray) -> None:
        """Write the label, uint8 (h, w), turned like the image, to `out`."""
        _turn(label, self.turn, out)


def _turn(image: np.ndarray, turn: int, out: np.ndarray) -> None:
    """Write the image, flipped along x (bit 0) and y (bit 1), then transposed (bit 2), to `out`."""
    flips = (turn & 1, turn >> 1 & 1)
    target = np.empty_like(image) if turn & 4 else out
    if any(flips):
        cv2.flip(image, {(1, 0): 1, (0, 1): 0, (1, 1): -1}[flips], dst=target)
    elif not turn & 4:
        np.copyto(out, image)
    if turn & 4:
        cv2.transpose(target if any(flips) else image, dst=out)
