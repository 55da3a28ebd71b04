"""Validates the model during a run and writes down what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from samplers import Loader
from training.clocks import Laps
from training.report import write_report
from training.run_log import RunLog
from training.trainer import Trainer
from training.validate import Validation, validate


@dataclass
class Validator:
    """Runs validations, and writes metrics, pictures, histograms of the weights (if asked) and the report."""

    trainer: Trainer
    loader: Loader
    log: RunLog
    log_dir: Path
    histograms: bool
    laps: Laps = field(default_factory=Laps)
    patches: int = 0  # number of patches of the last validation
    last: Validation | None = None

    def run(self, step: int) -> float:
        """Collective: validate the model of this step in inference mode. Return the mIoU."""
        self.laps.start()
        found = validate(self.trainer, self.loader, self._show)
        self.log.bar.now("writing")
        values = found.values()
        self.patches = found.counts.images
        self.log.record(step, "val", values)
        self.log.pictures(step, [shown.picture for shown in found.mixed])
        if self.histograms:
            self.log.histograms(step, self.trainer.model.trainable_variables)
        self.last = found
        self.report()
        return float(values["miou"])

    def report(self) -> None:
        """Let rank 0 write the report, with the last validation of this process; without one the report stays."""
        if self.trainer.world.is_first and self.last is not None:
            with self.log.dispensable("report.html"):
                write_report(self.log_dir, self.last)

    def restart_dead_workers(self) -> None:
        """Start processes that draw validation patches again if they died while the model is trained."""
        self.loader.restart_dead_workers()

    def _show(self, images: int) -> None:
        """Show how many patches were validated so far."""
        self.laps.lap()
        self.log.bar.now(f"validating, {images * self.trainer.world.group.count} patches")
