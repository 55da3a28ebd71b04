"""The network of a run as a model of whole slides, and the time that these may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from models import training_network
from prediction.model import planes_of
from samplers.slides.errors import DataError

if TYPE_CHECKING:
    from training.trainer import Trainer

NO_TIME = "the time for whole slides was over (--validate_slides_minutes)"
STOPPED = "the run was asked to stop"


class OverTimeError(DataError):
    """The slide is not finished in the time that is left."""


@dataclass
class Clock:
    """Says why whole slides have to wait: their `seconds` are over, or the run should `stop`."""

    seconds: float
    stop: Callable[[], bool]
    start: float = field(default_factory=time.monotonic)

    def objection(self, reserve: float = 0.0) -> str:
        """Return NO_TIME or STOPPED, "" if there is no reason. `reserve`: seconds for what comes after."""
        if self.stop():
            return STOPPED
        return NO_TIME if time.monotonic() - self.start > self.seconds - reserve else ""


class Pace:
    """How fast this rank predicts its part of a slide. The first batch waits for its graph and is not counted."""

    def __init__(self) -> None:
        self._share = 0.0
        self._first = self._last = -1.0

    def advance(self, share: float, _patches: int) -> None:
        """Note that so much more of the part is done, of 1."""
        self._last = time.monotonic()
        if self._first < 0:
            self._first = self._last
        else:
            self._share += share

    @property
    def seconds(self) -> float:
        """The seconds that the whole part takes; 0 if that is not known yet."""
        return (self._last - self._first) / self._share if self._share else 0.0


class TrainedModel:
    """The network as it is trained at this moment, on whole patches: a `PatchModel`."""

    deviates = False

    def __init__(self, trainer: Trainer, size: int) -> None:
        self.planes = 1 if trainer.num_classes == 2 else trainer.num_classes
        self.last = 0.0  # when the last batch was done, of time.monotonic()
        self.before: Callable[[], None] = lambda: None  # called before each batch; may raise DataError
        self._activity = trainer.world.activity
        network = training_network(trainer.model_name, trainer.model)
        self._graph = tf.function(
            lambda images: planes_of(tf.nn.softmax(tf.cast(network(images, False), tf.float32))),
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)],
            autograph=False,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.before()
        found: np.ndarray = self._graph(tf.constant(images)).numpy()
        self._activity.goes_on()  # else slides that take an hour would be a stall
        self.last = time.monotonic()
        return found
