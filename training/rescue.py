"""Saves a run whose ranks do not go on: a checkpoint of the last update, from a thread, with what rank 0 has."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from samplers import Loader
from training.checkpoint import Checkpointer, checkpoint_path, save_checkpoint
from training.clocks import Stopwatch
from training.progress import Progress
from utils.ranks.single import Ranks

UPDATE_SECONDS = 2.0  # an update that has begun, since the ranks went on after all, has ended after this time


@dataclass
class Rescue:
    """Keeps the progress as of the last update. `describe` returns what a checkpoint says beside it.

    `stops` returns whether the run was asked to stop.

    The main thread of rank 0 waits for other ranks in a collective meanwhile. So the variables are those of the last
    update: a step changes them when all of its reductions are done (`update_variables`). Only batch norm's moving
    averages are those of rank 0, and may have seen one batch more.
    """

    world: Ranks
    checkpointer: Checkpointer
    loader: Loader
    describe: Callable[[], dict[str, Any]]
    stops: Callable[[], bool]
    kept: Progress | None = field(default=None, init=False)

    def keep(self, progress: Progress) -> None:
        """Note the progress after an update."""
        if self.world.size > 1 and self.world.is_first:
            self.kept = copy.deepcopy(progress)
            self.kept.interval.clock = Stopwatch(
                progress.interval.clock.seconds
            )  # not the time that ranks hang

    def forget(self) -> None:
        """Note that the training is over."""
        self.kept = None

    @property
    def ready(self) -> bool:
        return self.kept is not None

    def save(self) -> str:
        """Write the checkpoint, on rank 0. Return the sentence about it, or "" if the ranks went on meanwhile.

        What is not known of the other ranks is taken as on this one (the next batch) or left out: bad slides are found
        again, and the sums since the last log are those of this rank's patches.
        """
        kept, doing = self.kept, self.world.activity.now
        assert kept is not None
        folder = self.checkpointer.folder
        if checkpoint_path(folder, kept.step).exists():
            return f"the checkpoint of step {kept.step} is in {folder}"
        if not self.checkpointer.lock.acquire(blocking=False):
            return f"this rank itself hangs while it writes to {folder}: the last whole checkpoint stays"
        try:
            path = save_checkpoint(folder, self.checkpointer.variables, self._state(kept))
            time.sleep(UPDATE_SECONDS)
            if self.world.activity.now != doing:
                shutil.rmtree(path)  # it may have parts of the next update
                return ""
        except OSError as error:
            return f"no checkpoint could be written, the last one stays: {error}"
        finally:
            self.checkpointer.lock.release()
        return f"a checkpoint of step {kept.step} is in {folder}"

    def _state(self, kept: Progress) -> dict[str, Any]:
        state = replace(kept, dropped=self.loader.dropped).to_state(Ranks())
        others = {"next_batch": kept.next_batch, "dropped": {}}
        state["ranks"] += [others] * (self.world.group.count - 1)
        return {**state, **self.describe()}
