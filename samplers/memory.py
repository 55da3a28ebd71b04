"""Says how much memory the worker processes of a rank may take, for `--memory_report` and the planner."""

from __future__ import annotations

from samplers.reader import MAX_BYTES
from samplers.slides.tiff_reader import TILE_CACHE_BYTES
from samplers.surf import MAX_REGION_BYTES
from samplers.workers.ring import batch_bytes, slot_count

PROCESS_BYTES = 220 << 20  # of the interpreter with its libraries, measured
COPIES = 4  # of a patch while it is drawn: as it is read, resampled and augmented


def workers_bytes(batch_size: int, img_size: int, processes: int, height: int | None = None) -> int:
    """Return the bytes that a rank's workers take at the most: `processes` for training, and as many for validation.

    Their caches of decoded tiles, open slides and, in training, SURF's regions are counted as full, which takes some
    hundred slides. Their batches lie in shared memory. `height` is that of a rank's strip of a patch.
    """
    batches = slot_count(batch_size, img_size, processes, height) * batch_bytes(batch_size, img_size, height)
    each = PROCESS_BYTES + TILE_CACHE_BYTES + MAX_BYTES + batches + COPIES * batch_bytes(1, img_size, height)
    return processes * (2 * each + MAX_REGION_BYTES)
