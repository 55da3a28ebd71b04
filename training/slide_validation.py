"""Validates on whole slides during a run: predicts them as predict.py does, and scores them as `evaluation` does.

A failure costs a slide or the scores of one validation, never the run: a slide that cannot be used, or for which the
time is over, is left out and named, and so are all slides where the files cannot be written. Every rank takes part in
every exchange whatever happens to it.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from evaluation.each import spared
from evaluation.lesions import MIN_DIAMETER_UM, THRESHOLD
from evaluation.whole_slides import SlideScore, intervals, score_slide, summarise
from prediction import store
from prediction.store import PredictionSettings
from prediction.work import Worker
from samplers.labels.label import open_label
from samplers.labels.label_map import LabelMap, shows_tumour
from samplers.pairs.names import name_some
from samplers.pairs.pairing import SlidePair, map_of
from samplers.slides.frame import frame_of_file
from training.plan import slides_every
from training.run_log import RunLog
from training.trained_model import NO_TIME, STOPPED, Clock, OverTimeError, Pace, TrainedModel
from utils.cli import UserError
from utils.pictures import OUTLINE_LABEL, draw_outline
from utils.ranks.single import ALONE, Ranks

if TYPE_CHECKING:
    from training.trainer import Trainer

FOLDER = "validation_slides"  # in the log_dir: what predict.py would write
ENDING = 0.15  # share of the time that is kept for files and scores until it is known what they take
SAMPLES = 200  # of the bootstrap for intervals
PICTURE = 1024  # longer side in pixels
# --best_by → its name in metrics.jsonl
WITHOUT = {
    "froc": "no lesion is larger than isolated tumour cells",
    "auc": "it needs slides with tumour and slides without",
    "dice": "no slide has tumour, and none was predicted",
}
SCORES = {"froc": "froc_corrected", "auc": "slide_auc", "dice": "slide_dice"}


@dataclass
class Share:
    """The result of one rank."""

    scores: list[SlideScore] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # slide → reason
    pictures: dict[str, bytes] = field(default_factory=dict)  # slide → JPEG
    error: str = ""  # the file that could not be written
    ending: float = 0.0  # seconds for files and scores, after the last patch
    needs: dict[str, float] = field(
        default_factory=dict
    )  # slide that was not finished → seconds that it takes
    objection: str = ""
    hurried: bool = False  # the run's own time leaves less than --validate_slides_minutes


@dataclass
class SlideValidator:
    """Validates on `pairs`, and writes scores and pictures. The newest predictions lie in <log_dir>/FOLDER."""

    options: argparse.Namespace
    trainer: Trainer
    pairs: Sequence[SlidePair]
    label_map: LabelMap
    class_names: Sequence[Sequence[str]]
    log: RunLog
    log_dir: Path
    ending: float = 0.0  # the longest `Share.ending` so far
    needs: dict[str, float] = field(default_factory=dict)  # the largest `Share.needs` of all ranks so far
    model: TrainedModel | None = None
    said: set[str] = field(default_factory=set)  # why no checkpoint was the best one

    def __str__(self) -> str:
        names = name_some(pair.name for pair in self.pairs)
        minutes, every = (
            self.options.validate_slides_minutes,
            slides_every(self.options, self.options.num_steps),
        )
        return f"whole slides: every {every:,} steps and at the end, for at most {minutes:g} min each time: {names}"

    def run(self, step: int, seconds_left: float, stop: Callable[[], bool]) -> tuple[float | None, bool]:
        """Collective: validate the model of this step. Return the score of --best_by, and whether it was cut short.

        It takes no longer than --validate_slides_minutes, and no longer than `seconds_left`: if these are over first,
        or the run should `stop`, it is cut short and leaves no scores. The score is None if it does not exist, or if
        slides are missing for want of time or of room on the disk: it could not be compared with others.
        """
        budget = 60 * self.options.validate_slides_minutes
        clock = Clock(min(budget, seconds_left), stop)
        self.trainer.average_statistics()  # Horovod
        settings = settings_of(self.options, step)
        error, seen = self._prepare(settings)
        share = self._work(settings, seen, clock) if not error else Share(error=error)
        share.objection, share.hurried = clock.objection(), seconds_left < budget
        shares = self.trainer.world.gather(share)
        self.ending = max(self.ending, *(part.ending for part in shares))
        for part in shares:
            for name, seconds in part.needs.items():
                self.needs[name] = max(seconds, self.needs.get(name, 0.0))
        scores = sorted((score for part in shares for score in part.scores), key=lambda score: score.name)
        left_out = {name: reason for part in shares for name, reason in part.left_out.items()}
        stopped = STOPPED in (part.objection for part in shares)
        error = next((part.error for part in shares if part.error), "")
        missing = {pair.name for pair in self.pairs} - {score.name for score in scores} - {*left_out}
        left_out.update(dict.fromkeys(missing, error or (STOPPED if stopped else NO_TIME)))
        waits = bool({NO_TIME, STOPPED} & {*left_out.values()})
        # All ranks decide alike, although they do not have the same seconds left.
        if waits and not error and (stopped or any(part.hurried for part in shares)):
            self.log.say("the validation on whole slides is cut short, and comes again when the run goes on")
            return None, True
        values = {
            **summarise(scores),
            "intervals": intervals([[score] for score in scores], SAMPLES, 0)
            if self.trainer.world.is_first
            else {},
            "seconds": time.monotonic() - clock.start,
            "slides_asked": len(self.pairs),
            "left_out": left_out,
        }
        self._write(
            step, values, {name: picture for part in shares for name, picture in part.pictures.items()}
        )
        score = None if waits or error else values.get(SCORES.get(self.options.best_by, ""))
        if score is None and self.options.best_by in SCORES:
            self._say_undecided(bool(waits or error))
        return score, False

    def _say_undecided(self, incomplete: bool) -> None:
        """Say once why no checkpoint is the best one by this validation."""
        reason = (
            "slides are missing" if incomplete else f"these slides have none: {WITHOUT[self.options.best_by]}"
        )
        if reason not in self.said:
            self.said.add(reason)
            self.log.say(f"warning: --best_by {self.options.best_by} decides nothing here, as {reason}")

    def _prepare(self, settings: PredictionSettings) -> tuple[str, list[int]]:
        """Collective: make the folder anew. Return why that fails, or "", and the ranks that see the folder."""
        folder, error, world = self.log_dir / FOLDER, "", self.trainer.world
        if world.is_first:
            try:
                shutil.rmtree(folder, ignore_errors=True)
                store.prepare(folder, settings)
            except UserError as failure:
                error = str(failure)
        error = world.broadcast(error)
        sees = world.gather((folder / "prediction.json").exists())
        return error, [rank for rank, it_does in enumerate(sees) if it_does]

    def _work(self, settings: PredictionSettings, seen: list[int], clock: Clock) -> Share:
        """Collective: predict and score slides. All ranks share each slide, if all see the folder of its files.

        Else those that see it take a slide each.
        """
        world, folder = self.trainer.world, self.log_dir / FOLDER
        team: Ranks = ALONE
        pairs = [pair for pair in self.pairs if not self._too_long(pair.name)]
        if len(seen) == world.size:
            team = world
        elif world.rank in seen:
            pairs = pairs[seen.index(world.rank) :: len(seen)]
        else:
            return Share()
        if self.model is None:
            self.model = TrainedModel(self.trainer, self.options.img_size)
        self.model.last = time.monotonic()
        reserve = max(self.ending, ENDING * clock.seconds)
        share, pace = Share(), Pace()

        def in_time() -> Iterator[Path]:
            nonlocal pace
            for number, pair in enumerate(pairs):
                if any(team.gather(bool(clock.objection(reserve)))):
                    return
                self.log.bar.now(f"whole slides, {number + 1} of {len(pairs)}")
                pace = Pace()
                yield pair.slide
                if clock.objection(reserve) == NO_TIME:
                    share.needs[pair.name] = pace.seconds

        def before() -> None:
            if objection := clock.objection(reserve):
                raise OverTimeError(objection)

        self.model.before = before
        names = [names[0] for names in self.class_names[1:]]
        worker = Worker(
            folder, settings, self.model, names, team, lambda *done: pace.advance(*done), outlines=False
        )
        outcome = worker.run(in_time())
        share.left_out, share.error = outcome.bad, outcome.error
        for number, pair in enumerate(pairs):
            if number % team.size == team.rank and store.is_finished(folder, pair.slide):
                self._score(pair, share, clock)
        share.ending = time.monotonic() - self.model.last
        return share

    def _too_long(self, name: str) -> bool:
        """Return whether a slide would not be finished even if it had all of the time."""
        budget = 60 * self.options.validate_slides_minutes
        return self.needs.get(name, 0.0) > budget - max(self.ending, ENDING * budget)

    def _score(self, pair: SlidePair, share: Share, clock: Clock) -> None:
        """Compare a predicted slide with its label, if there is time, and draw it."""
        folder, label_map = self.log_dir / FOLDER, map_of(pair, self.label_map)
        self.log.bar.now(f"whole slides, scores of {pair.name}")
        if objection := clock.objection():
            share.left_out[pair.name] = objection
            return
        with spared(share.left_out, pair.name):
            probability = store.read_record(folder, pair.name)["probability"]
            share.scores.append(
                score_slide(folder, pair.name, probability, pair.slide, pair.label, label_map)
            )
            with self.log.dispensable(f"the picture of {pair.name}"):
                share.pictures[pair.name] = picture_of(folder, pair, label_map)
        self.trainer.world.activity.goes_on()

    def _write(self, step: int, values: dict[str, Any], pictures: dict[str, bytes]) -> None:
        """Let rank 0 write the scores, the pictures and the table of the slides."""
        for name, reason in sorted(values["left_out"].items()):
            if self._too_long(name):
                reason = (
                    f"it alone takes about {self.needs[name] / 60:,.1f} min on these ranks, more than "
                    "--validate_slides_minutes leaves it, and is not begun again in this run"
                )
            self.log.say(f"warning: whole slides: {name} is left out: {reason}")
        if self.trainer.world.is_first:
            with self.log.dispensable(f"{FOLDER}/slides.csv"):
                store.write_table(self.log_dir / FOLDER)
        self.log.record(step, "slides", values)
        self.log.slide_pictures(step, pictures)


def settings_of(options: argparse.Namespace, step: int) -> PredictionSettings:
    """Return the settings that predict.py has by default for the model of this step."""
    return PredictionSettings(
        model=f"step {step}",
        img_size=options.img_size,
        overlap=store.OVERLAP,
        # A rank that shares its patches has the memory for a strip of them, if with all activations.
        batch_size=options.batch_size if options.ranks_per_patch == 1 else 1,
        resolution=options.resolution,
        tissue_only=True,
        bb_downsample=options.bb_downsample,
        tta=False,
        mixed_precision=options.mixed_precision,
        threshold=THRESHOLD,
        min_lesion_mm=MIN_DIAMETER_UM / 1000,
    )


def picture_of(folder: Path, pair: SlidePair, label_map: LabelMap) -> bytes:
    """Return a JPEG of at most PICTURE pixels: the overlay of predict.py, with the label's outlines in black.

    DataError: the label cannot be read. OSError: the overlay cannot.
    """
    overlay = cv2.imdecode(
        np.frombuffer((folder / f"{pair.name}_overlay.png").read_bytes(), np.uint8), cv2.IMREAD_COLOR
    )
    scale = min(1.0, PICTURE / max(overlay.shape[:2]))
    picture = cv2.resize(overlay, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if pair.label is not None:
        label = open_label(pair.label, frame_of_file(folder / f"{pair.name}_prediction.tif"), label_map)
        try:
            tumour = shows_tumour(label.thumbnail(picture.shape[1], picture.shape[0]))
        finally:
            label.close()
        picture = draw_outline(picture, tumour, OUTLINE_LABEL)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
