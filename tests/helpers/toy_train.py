"""train.py with a model of a few thousand weights, for tests of what does not depend on its size.

TOY_WRITE_SECONDS in the environment says how long it takes to write a checkpoint, as if the model were large, and
TOY_KILLED_AT the step whose validation it does not survive: it is killed before the checkpoint has the score.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import models.from_options
import train
import training.checkpoint
from tests.helpers.rank_weights import build


def slow_save(*arguments: Any) -> Any:
    time.sleep(float(os.environ.get("TOY_WRITE_SECONDS", "0")))
    return save_checkpoint(*arguments)


def killed(checkpointer: training.checkpoint.Checkpointer, step: int, values: dict[str, Any]) -> None:
    if step == int(os.environ.get("TOY_KILLED_AT", "-1")):
        os.kill(os.getpid(), signal.SIGKILL)
    add_score(checkpointer, step, values)


if __name__ == "__main__":
    models.from_options.build_model = build
    save_checkpoint = training.checkpoint.save_checkpoint
    training.checkpoint.save_checkpoint = slow_save
    add_score = training.checkpoint.Checkpointer.add_score
    training.checkpoint.Checkpointer.add_score = killed
    sys.exit(train.main())
