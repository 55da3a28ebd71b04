"""train.py with a model of a few thousand weights, for tests of what does not depend on its size."""

from __future__ import annotations

import sys

import train
import utils.training
from tests.rank_weights import build

if __name__ == "__main__":
    utils.training.build_model = build
    sys.exit(train.main())
