"""How the ranks that share a patch agree on it, although each of them reads only a strip.

All ranks of a group draw the same places. What only the whole patch shows, each of them reports of its strip: that it
could not be read, what its label shows, and the sums that say whether the patch is pale. `ruling_after` is a pure
function of the reports of all of them, so they all find the same ruling without another message: None if they agree,
otherwise the places in the sequence of draws (slot in the batch, attempt) at which each of them has to draw again. The
batch is then filled anew, with the ruling. The earliest place goes first, because what comes after it depends on it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from samplers.patches import PatchInfo, SamplerError
from samplers.shown import Claim, Shown, Wanted
from samplers.tissue import contrast_of_sums_is_low

AT_START = (-1, -1)  # the place of a failure that came before the first draw


class Place(NamedTuple):
    """A draw: the `attempt` to fill the `slot` of a batch."""

    slot: int
    attempt: int


class Failure(NamedTuple):
    """A slide that could not be read, and the place where."""

    slide: str
    reason: str
    place: tuple[int, int] = AT_START
    proposing: bool = False  # while the patch was proposed, not when it was read


@dataclass(frozen=True)
class Look:
    """What a rank saw of a patch that it took."""

    place: Place
    patch: PatchInfo
    sums: np.ndarray | None = None  # `tissue.contrast_sums` of its strip; None if the patch may be pale
    claim: Claim | None = None  # None if all of the label was looked at, or may show anything


class Filled(NamedTuple):
    """What a batch was filled with. There is one look for each patch if the ranks have to agree on them."""

    patches: Sequence[PatchInfo]
    failures: Sequence[Failure] = ()
    looks: Sequence[Look] = ()

    @property
    def failed(self) -> dict[str, str]:
        """Return the slides that could not be read → the reasons."""
        return {failure.slide: failure.reason for failure in self.failures}


@dataclass(frozen=True)
class Ruling:
    """The places at which the ranks of a group draw again: where a slide failed on one of them, or a patch is rejected.

    `rejected` says of each place whether the patch is pale; otherwise its label does not fit.
    """

    failures: tuple[Failure, ...] = ()
    rejected: Mapping[tuple[int, int], bool] = field(default_factory=dict)

    def at_start(self) -> list[Failure]:
        return [failure for failure in self.failures if failure.place == AT_START]

    def failure_at(self, place: Place) -> Failure | None:
        return next((failure for failure in self.failures if failure.place == place), None)


NO_RULING = Ruling()


class Sampler(Protocol):
    """Fills batches. The result depends only on the index, the ruling and the slides that `drop` has excluded."""

    def fill(self, index: int, images: np.ndarray, labels: np.ndarray, ruling: Ruling = NO_RULING) -> Filled:
        """Write batch `index` to images (B, H, W, 3) and labels (B, H, W), uint8.

        Returns its patches (fewer than B in the last batch of a validation) and the slides that could not be read.
        Raises SamplerError if there is no patch of the wanted kind.
        """

    def drop(self, slide: str, index: int) -> None:
        """Draw nothing from this slide from batch `index` on."""


def ruling_after(reports: Sequence[Filled], ruling: Ruling) -> Ruling | None:
    """Return the ruling that follows the one with which the batch was filled, None if all ranks agree on the batch.

    `reports` are those of all ranks of the group. SamplerError if they drew different patches for no reason.
    """
    # Of one place one failure counts, however each rank met it. Before the first draw there may be many.
    every = sorted((f for report in reports for f in report.failures), key=_order, reverse=True)
    failures = {(f.place, f.slide if f.place == AT_START else ""): f for f in every}
    shared = set.intersection(*({_event(f) for f in report.failures} for report in reports))
    alone = [f.place for f in every if _event(f) not in shared]
    rejected = _rejected([report.looks for report in reports], before=min(alone, default=None))
    if not alone and rejected is None:
        return None
    if rejected is not None:
        place, is_pale = rejected
        ruling = replace(ruling, rejected={**ruling.rejected, place: is_pale})
    first = min(alone) if rejected is None else rejected[0]
    settled = sorted((f for f in failures.values() if f.place <= first), key=_order)
    return replace(ruling, failures=tuple(settled))


def agreed(reports: Sequence[Filled]) -> Filled:
    """Return what all ranks of a group filled a batch with: a patch has tumour if a rank sees some of it."""
    looks = zip(*(report.looks for report in reports))
    patches = [replace(seen[0].patch, tumour=any(look.patch.tumour for look in seen)) for seen in looks]
    return Filled(patches, reports[0].failures)


def _event(failure: Failure) -> tuple[tuple[int, int], str, bool]:
    return failure.place, failure.slide, failure.proposing


def _order(failure: Failure) -> tuple[tuple[int, int], bool, str]:
    return failure.place, not failure.proposing, failure.slide


def _rejected(looks: Sequence[Sequence[Look]], before: tuple[int, int] | None) -> tuple[Place, bool] | None:
    """Return the first place with a patch that is rejected, if it comes before a place; and whether it is pale."""
    for seen in zip(*looks):
        first = seen[0]
        if before is not None and first.place >= before:
            return None
        if len({_identity(look) for look in seen}) > 1:
            raise SamplerError(f"the ranks that share a patch drew different ones: {_listed(seen)}")
        claims = [look.claim for look in seen if look.claim is not None]
        if claims and not _fits(claims):
            return first.place, False
        if first.sums is not None and contrast_of_sums_is_low(sum(look.sums for look in seen)):
            return first.place, True
    if before is None and len({len(rank) for rank in looks}) > 1:
        raise SamplerError(f"the ranks that share a patch drew {', '.join(str(len(rank)) for rank in looks)}")
    return None


def _fits(claims: Sequence[Claim]) -> bool:
    """Return whether the strips of a label together show what was wanted."""
    return functools.reduce(Shown.with_part, (claim.shown for claim in claims)).fits(claims[0].wanted)


def _identity(look: Look) -> tuple[Place, PatchInfo, Wanted | None, bool]:
    wanted = look.claim and look.claim.wanted
    return look.place, replace(look.patch, tumour=False), wanted, look.sums is None


def _listed(looks: Collection[Look]) -> str:
    return "; ".join(f"{look.patch.slide} ({look.patch.x_l0}, {look.patch.y_l0})" for look in looks)
