"""Draws patches from whole-slide images. The training loop needs only these names; nothing here imports TensorFlow.

config = SamplerConfig(sampler="surf", img_size=1024, batch_size=2)
with training_loader(pairs, config, rank, size, processes=1, start=0) as loader:
    for batch in loader:            # endless
        batch.images, batch.labels  # uint8 (B, H, W, 3) and (B, H, W), valid until the next batch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from samplers.agreement import Filled
from samplers.pairs.pairing import SlidePair
from samplers.patches import Batch, PatchInfo, SamplerConfig, SamplerError, share_slides, too_many_bad_slides
from samplers.picture import draw_samples
from samplers.radboud import RadboudSampler
from samplers.surf import SurfSampler
from samplers.validation import GridSampler, validation_patches
from samplers.workers.loader import Loader
from utils.ranks.single import ALONE, Ranks

Gather: TypeAlias = "Callable[[Filled], list[Filled]]"

SAMPLERS = {"surf": SurfSampler, "radboud": RadboudSampler}

__all__ = [
    "SAMPLERS",
    "Batch",
    "Loader",
    "PatchInfo",
    "SamplerConfig",
    "SamplerError",
    "SlidePair",
    "draw_samples",
    "too_many_bad_slides",
    "training_loader",
    "validation_loader",
]


def training_loader(
    pairs: Sequence[SlidePair],
    config: SamplerConfig,
    rank: int,
    size: int,
    processes: int,
    start: int = 0,
    dropped: Mapping[str, tuple[str, int]] | None = None,
    gather: Gather | None = None,
) -> Loader:
    """Return a loader of endless batches of one rank, from batch `start` on; `pairs` are all training slides.

    Batch b is a function of (seed, rank, size, b), whatever the number of `processes` (0 draws in the calling
    process). `dropped` is the `Loader.dropped` of the run that is resumed. The iteration raises SamplerError for
    errors that come up while drawing, for example if no slide has tumour.

    Where several ranks share each patch (`config.strip`), `rank` and `size` are the number of their group and of all
    groups, and `gather` returns the values of all ranks of the group: each batch is collective in it.
    """
    pairs = _absolute(pairs)
    allowed = config.bad_slides_allowed(len(share_slides(pairs, rank, size, config.seed)))
    make = partial(SAMPLERS[config.sampler], pairs, config, rank, size)
    return Loader(
        make,
        config.batch_size,
        config.img_size,
        processes,
        start,
        bad_slides_allowed=allowed,
        dropped=dropped,
        height=config.strips.rows.height,
        gather=gather if config.strip is not None else None,
    )


def validation_loader(
    pairs: Sequence[SlidePair],
    config: SamplerConfig,
    rank: int,
    size: int,
    processes: int,
    gather: Gather | None = None,
    ranks: Ranks = ALONE,
) -> Loader:
    """Return a loader of one rank's share of the fixed validation patches, not augmented.

    Each `iter()` begins with the first patch. The union over ranks is the same for every number of ranks. Ranks may
    have different numbers of batches, or none, and the last batch may be smaller. All thumbnails are read before this
    returns, by all `ranks` together, for which this is collective: DataError if more of them cannot be read than is
    allowed, or there is nothing to validate. `rank`, `size` and `gather` are those of `training_loader`.
    """
    pairs = _absolute(pairs)
    mine = validation_patches(pairs, config, ranks)[rank::size]
    count = -(-len(mine) // config.batch_size)
    make = partial(GridSampler, mine, config)
    allowed = config.bad_slides_allowed(len(pairs))
    return Loader(
        make,
        config.batch_size,
        config.img_size,
        processes,
        count=count,
        bad_slides_allowed=allowed,
        height=config.strips.rows.height,
        gather=gather if config.strip is not None else None,
    )


def _absolute(pairs: Sequence[SlidePair]) -> list[SlidePair]:
    """Make the paths absolute, because workers have another working directory."""
    return [replace(p, slide=p.slide.absolute(), label=p.label and p.label.absolute()) for p in pairs]
