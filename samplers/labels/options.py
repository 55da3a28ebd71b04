"""The options about labels that several programs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samplers.labels.label_map import UNANNOTATED

LABEL_MAP_HELP = (
    "class of each annotation group or mask value, painted in this order; GROUP:ignore is not known and counts nowhere "
    "(default: tumour of CAMELYON and ASAP is 1, all else 0)"
)
UNANNOTATED_HELP = (
    "what no annotation covers, and the value 0 of masks unless --label_map names it: class 0, or not known, so that "
    "only annotated pixels count"
)


def add_label_options(add: Callable[..., Any]) -> None:
    """Add --label_map and --unannotated to a parser or a group of it."""
    add("--label_map", nargs="+", metavar="GROUP:CLASS", help=LABEL_MAP_HELP)
    add("--unannotated", choices=list(UNANNOTATED), default="background", help=UNANNOTATED_HELP)
