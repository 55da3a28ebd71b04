"""Pictures of the first training patches on their slides: <log_dir>/samples/<slide>.png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samplers import PatchInfo, SamplerConfig, draw_samples
from samplers.pairs.pairing import SlidePair
from training.dispensable import Dispensable
from utils.ranks.single import Ranks

MAX_PATCHES = 500  # per rank


@dataclass
class Samples:
    """Collects the patches that a run draws first, and draws them once."""

    folder: Path
    world: Ranks
    pairs: Sequence[SlidePair]
    config: SamplerConfig
    dispensable: Dispensable
    patches: list[PatchInfo] = field(default_factory=list)

    def add(self, patches: Sequence[PatchInfo]) -> None:
        """Take the patches of a batch; the first one of the ranks that share them does."""
        if self.world.group.is_first and len(self.patches) < MAX_PATCHES:
            self.patches.extend(patches)

    def draw(self) -> None:
        """Collective: write the pictures unless they are there already."""
        if self.world.broadcast(self.folder.exists()):
            return
        patches = [patch for rank in self.world.gather(self.patches) for patch in rank]
        if not (self.world.is_first and patches):  # there are none where a run goes on with a validation
            return
        with self.dispensable(f"{self.folder}"):
            draw_samples(self.folder, self.pairs, self.config, patches)
