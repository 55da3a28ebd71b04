"""Estimates how far an annotated lesion must be moved to lie on the predicted one, in numpy and without IO."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage, signal

from prediction.audit.maps import Maps

MIN_SHIFT_UM = 5.0  # what is less is within the width of a drawn line
GAIN = 0.25  # part of the disagreement that moving must take away
ON_LESION = 0.5  # mean probability that the moved annotation must lie on
_TIE = 1e-3  # of the annotation's pixels; of offsets that are as good the shortest is taken
_CONNECTED = np.ones((3, 3), int)


@dataclass(frozen=True)
class Shift:
    """An offset by which an annotation agrees better with the prediction, in pixels of the maps."""

    dx: int
    dy: int
    moved: np.ndarray  # bool (h, w): the annotation where it agrees best
    changed: np.ndarray  # bool (h, w): known pixels whose annotation changes
    gain: float  # pixels, by which the sum of |annotation - probability| falls

    @property
    def confidence(self) -> float:
        """The gain per changed pixel, 0 … 1."""
        return self.gain / max(1, int(self.changed.sum()))


def moved_by(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Return a bool mask (h, w) moved to the right by dx and down by dy; what leaves the picture is lost."""
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    moved = cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    return np.asarray(moved > 0)


def estimate_shift(maps: Maps, own: np.ndarray, reach_um: float, threshold: float) -> Shift | None:
    """Return how far an annotation, bool (h, w) `own`, is off the predicted lesion; None if it is not.

    The offset is the one, of all within `reach_um` along each axis, that minimises the sum of
    |annotation - probability| over the pixels that are known and not annotated as another lesion. With w = 2p - 1 on
    these pixels and 0 elsewhere that is the maximum of the cross-correlation of annotation and w, by FFT. (A phase
    correlation weighs all frequencies alike, and is at a loss with two shapes that are not the same.) An annotation
    that is only larger or smaller than the prediction has its maximum at 0 as well, since of offsets that are as good
    the shortest is taken. It counts as shifted if it lies on the predicted lesion when moved, by at least
    MIN_SHIFT_UM, and if that takes away the part GAIN of the disagreement.
    """
    valid = maps.known & ~(maps.annotated & ~own)
    weights = np.where(valid, 2 * maps.probability - 1, 0).astype(np.float32)
    reach = max(1, round(reach_um / maps.spacing))
    gains = _correlation(weights, own.astype(np.float32), reach)
    ys, xs = np.nonzero(gains >= gains.max() - _TIE * own.sum())
    nearest = np.argmin((ys - reach) ** 2 + (xs - reach) ** 2)
    dx, dy = int(xs[nearest]) - reach, int(ys[nearest]) - reach
    if np.hypot(dx, dy) * maps.spacing < MIN_SHIFT_UM or max(abs(dx), abs(dy)) == reach:
        return None  # at the end of the reach it would agree even better farther away
    moved = moved_by(own, dx, dy)
    # Other lesions that are predicted nearby have nothing to do with this one.
    predicted, _ = ndimage.label(valid & (maps.probability >= threshold), _CONNECTED)
    touched = np.unique(predicted[own | moved])
    near = valid & (own | moved | np.isin(predicted, touched[touched > 0]))
    before, after = (float(np.abs(mask[near] - maps.probability[near]).sum()) for mask in (own, moved))
    there = moved & valid
    lies = float(maps.probability[there].mean()) if there.any() else 0.0
    if before - after < GAIN * before or lies < ON_LESION:
        return None
    return Shift(dx, dy, moved, (own != moved) & valid, before - after)


def _correlation(weights: np.ndarray, mask: np.ndarray, reach: int) -> np.ndarray:
    """Return the sum of the weights under the mask when it is moved: float32 (2·reach + 1, 2·reach + 1).

    Element (reach + dy, reach + dx) is that of the offset (dx, dy).
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    kernel = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(weights, reach)
    window = padded[
        rows[0] : rows[-1] + 1 + 2 * reach,
        columns[0] : columns[-1] + 1 + 2 * reach,
    ]
    return np.asarray(signal.correlate(window, kernel, "valid", "fft"))
