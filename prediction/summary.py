"""Says what was predicted and what was not, and writes the table of the slides."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from prediction import store
from prediction.work import PredictionOutcome
from utils.cli import EXIT_DONE, EXIT_FAILED, NO_ROOM
from utils.files import OutputError
from utils.ranks.single import Ranks


def summarise(program: str, output: Path, world: Ranks, outcome: PredictionOutcome, seconds: float) -> int:
    """Let rank 0 write slides.csv and report what was done and what was not; return the exit code. Collective."""
    outcomes = world.gather(outcome)
    bad = {slide: reason for part in outcomes for slide, reason in part.bad.items()}
    errors = Counter(part.error for part in outcomes if part.error)

    def say() -> None:
        try:
            store.write_table(output)
        except OutputError as error:
            errors[str(error)] += 1
        slides, patches = sum(part.slides for part in outcomes), sum(part.patches for part in outcomes)
        if slides:
            print(f"{slides} slides, {patches} patches in {seconds:.1f} s, {patches / seconds:.1f} patches/s")
        elif not bad and not errors:
            print("all slides are finished: nothing to do")
        print(f"written to {output}", flush=True)
        for slide, reason in sorted(bad.items()):
            sys.stderr.write(f"bad slide, left out: {slide}: {reason}\n")
        if bad:
            sys.stderr.write(f"{len(bad)} slides could not be used, all others are done\n")
        for text in errors:
            sys.stderr.write(f"{program}: error: {NO_ROOM.format(text)}\n")

    world.on_rank_0(say)
    failed = world.broadcast(bool(bad or errors))
    return EXIT_FAILED if failed else EXIT_DONE
