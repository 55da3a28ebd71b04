"""Several models in place of one: their mean, and how far they disagree, patch by patch in one pass over a slide.

After Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles" (2017),
arXiv 1612.01474.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prediction.model import ModelSource, Predictor, find_model
from prediction.work import PatchModel
from utils.cli import UserError

# Options of the training that decide how patches are cut; models of one ensemble see the same patch.
SAME = ("img_size", "resolution", "bb_downsample")


@dataclass(frozen=True)
class ModelSources:
    """The places of several models. It stands for a `ModelSource`."""

    sources: tuple[ModelSource, ...]

    @property
    def options(self) -> dict[str, Any]:
        return self.sources[0].options

    def class_names(self, classes: int) -> list[list[str]]:
        """Return the names of each class. UserError: they are not the same in all models."""
        names = [source.class_names(classes) for source in self.sources]
        for source, others in zip(self.sources, names):
            if others != names[0]:
                raise UserError(
                    f"the models have other classes: {self.sources[0].path} {names[0]}, {source.path} {others}"
                )
        return names[0]

    def identity(self) -> str:
        """Return what stands for the content of all files, in whatever order the models were given."""
        return "+".join(sorted(source.identity() for source in self.sources))


def find_models(paths: Sequence[Path], precision: str | None, given: set[str]) -> ModelSource | ModelSources:
    """Return the model at each path, which may be a pattern; one path gives a `ModelSource`.

    `given`: the options of SAME that the user has typed, by which the models need not agree. UserError: there is no
    model, one is there twice, or the models were trained with patches of another size or resolution.
    """
    found = [Path(name) for path in paths for name in ([path] if path.exists() else _matching(path))]
    sources = tuple(find_model(path, precision) for path in found)
    places = [source.path for source in sources]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"--model_path: {place} is there twice")
    for source in sources[1:]:
        for name in SAME:
            values = [one.options.get(name) for one in (sources[0], source)]
            if values[0] != values[1] and name not in given:
                raise UserError(
                    f"--model_path: {sources[0].path} was trained with --{name} {values[0]}, {source.path} with "
                    f"{values[1]}" + (f": give --{name}" if name != "bb_downsample" else "")
                )
    return sources[0] if len(sources) == 1 else ModelSources(sources)


def _matching(path: Path) -> list[str]:
    return sorted(glob.glob(str(path))) or [str(path)]


class Ensemble:
    """A `PatchModel` of models with the same classes: float32 (B, planes + 1, size, size).

    The planes are the mean of those of the models. The one more is the standard deviation of the models' probability of
    tumour (1 less that of class 0), from 0 to 0.5. UserError: a model has another number of classes than the first one.
    """

    deviates = True

    def __init__(self, models: Sequence[PatchModel]) -> None:
        self.models = models
        self.planes = models[0].planes
        self.classes = max(2, self.planes)
        planes = {model.planes for model in models}
        if len(planes) > 1:
            classes = ", ".join(str(max(2, count)) for count in sorted(planes))
            raise UserError(f"--model_path: the models have different numbers of classes: {classes}")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        mean = squares = np.zeros((), np.float32)
        for number, model in enumerate(self.models, 1):  # by Welford's method, which holds three arrays only
            found = model(images)
            step = found - mean
            mean = mean + step / np.float32(number)
            squares = squares + step[:, 0] * (found - mean)[:, 0]
        deviation = np.sqrt(np.maximum(squares, 0) / np.float32(len(self.models)))
        return np.concatenate([mean, deviation[:, None]], axis=1)


def load_models(
    source: ModelSource | ModelSources, precision: str | None, size: int, tta: bool, trust: bool
) -> Predictor | Ensemble:
    """Load the model or the models. UserError: see `Predictor` and `Ensemble`."""
    if isinstance(source, ModelSource):
        return Predictor(source, precision, size, tta, trust)
    return Ensemble([Predictor(one, precision, size, tta, trust) for one in source.sources])
