"""What the labels of a run's slides hold: classes with their areas, what is ignored, and what was left out."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samplers import SamplerConfig
from samplers.labels.label_map import IGNORED, LabelMap, class_names
from samplers.pairs.camelyon import center_of
from samplers.pairs.checks import LabelFacts
from samplers.pairs.pairing import SlidePair
from training.class_weights import BALANCED, class_weights
from training.summary import count
from utils.cli import UserError

if TYPE_CHECKING:
    from utils.ranks.world import World

LABELS_FILE = "labels.json"  # in the log_dir


@dataclass(frozen=True)
class LabelSummary:
    """The labels of the training or of the validation slides."""

    slides: int
    labelled: int  # slides that have a label; the others are free of tumour
    areas: dict[int, float]  # of each class that occurs, IGNORED among them, in mm²
    groups: dict[str, int]  # annotations of each group in the files, used or not
    unmeasured: int  # labels whose areas would take long to measure

    @classmethod
    def of(cls, pairs: Sequence[SlidePair], facts: Mapping[SlidePair, LabelFacts]) -> LabelSummary:
        areas: Counter[int] = Counter()
        groups: Counter[str] = Counter()
        for pair in pairs:
            areas.update(facts[pair].areas or {})
            groups.update(facts[pair].groups)
        return cls(
            slides=len(pairs),
            labelled=sum(pair.label is not None for pair in pairs),
            areas={value: float(area) for value, area in sorted(areas.items())},
            groups=dict(sorted(groups.items())),
            unmeasured=sum(facts[pair].areas is None for pair in pairs),
        )

    def text(self, names: Sequence[Sequence[str]]) -> str:
        """Return one line; `names` are those of each class."""
        parts = [
            f"{area:.3g} mm² {names[value][0]}" for value, area in self.areas.items() if value != IGNORED
        ]
        if self.areas.get(IGNORED):
            parts.append(f"{self.areas[IGNORED]:.3g} mm² ignored")
        if self.unmeasured:
            parts.append(f"{self.unmeasured} not measured (masks without a pyramid)")
        return f"{self.labelled} of {self.slides} slides have one: {', '.join(parts)}"

    def to_json(self, names: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the content of labels.json for these slides."""
        return {
            "slides": self.slides,
            "labelled": self.labelled,
            "mm2": [self.areas.get(value, 0.0) for value in range(len(names))],
            "ignored_mm2": self.areas.get(IGNORED, 0.0),
            "annotations": self.groups,
            "unmeasured": self.unmeasured,
        }

    def warnings(self, label_map: LabelMap, names: Sequence[Sequence[str]]) -> list[str]:
        """Return what the label map misses of these slides, and the classes that they lack."""
        known = {group for group, _ in label_map.groups}
        unused = {group: count for group, count in self.groups.items() if group not in known}
        found = []
        if unused:
            counts = ", ".join(f"{group} ({count})" for group, count in unused.items())
            found.append(f"annotations of groups that --label_map leaves out, with their number: {counts}")
        missing = [
            "/".join(names[value]) for value in range(label_map.num_classes) if not self.areas.get(value)
        ]
        if missing and not self.unmeasured:
            found.append(
                f"no training slide shows these classes, so they are not learnt: {', '.join(missing)}"
            )
        return found


@dataclass(frozen=True)
class RunLabels:
    """The classes of a run: their names, their weights in the loss, and what the labels of its slides hold."""

    names: list[list[str]]  # of each class
    weights: list[float]  # of each class
    weighting: list[str] | None  # the option --class_weights
    train: LabelSummary
    val: LabelSummary

    @classmethod
    def of(
        cls,
        options: argparse.Namespace,
        config: SamplerConfig,
        train: Sequence[SlidePair],
        val: Sequence[SlidePair],
        facts: Mapping[SlidePair, LabelFacts],
        world: World,
        resumed: Path | None,
    ) -> RunLabels:
        """Collective: sum up the labels, and warn of what the label map misses and of classes that do not occur.

        `resumed` is the folder of the run that goes on, whose balanced weights are taken: with another number of ranks
        they would be others.
        """
        classes = config.label_map.num_classes
        weights = world.on_rank_0(lambda: _weights_before(resumed, options.class_weights))
        if weights is None:
            weights = class_weights(options, classes, train, config, world)
        names = class_names(options.label_map, classes)
        found = cls(
            names, weights, options.class_weights, LabelSummary.of(train, facts), LabelSummary.of(val, facts)
        )
        if world.is_first:
            warnings = found.train.warnings(config.label_map, names)
            if options.batch_tumor_ratio == 1:
                warnings.append(tumour_only(found.train))
            if options.stain_jitter != "strong":
                warnings += unseen_centers(train, val)
            for warning in warnings:
                sys.stderr.write(f"warning: {warning}\n")
        return found

    def text(self) -> str:
        """Return one line on the labels of the training slides."""
        return self.train.text(self.names)

    def to_json(self) -> dict[str, Any]:
        """Return the content of labels.json."""
        return {
            "classes": self.names,
            "weights": self.weights,
            "class_weights": self.weighting,
            "train": self.train.to_json(self.names),
            "val": self.val.to_json(self.names),
        }


def tumour_only(train: LabelSummary) -> str:
    """Return what a model does not learn from the slides if each of its patches meets tumour."""
    unseen = count(train.slides - train.labelled, "slide")
    slides = f", and nothing is drawn from {unseen} without a label" if train.labelled < train.slides else ""
    return (
        "with --batch_tumor_ratio 1 (the default) each training patch meets tumour: tissue far from tumour is not "
        f"learnt and may be taken for it{slides}. 0.5 draws as many patches without tumour"
    )


def unseen_centers(train: Sequence[SlidePair], val: Sequence[SlidePair]) -> list[str]:
    """Return a warning if validation has slides of centres that training has none of, else nothing."""
    known, seen = ({center_of(pair.slide) for pair in pairs} - {None} for pairs in (val, train))
    if not seen or known <= seen:
        return []
    unseen = ", ".join(map(str, sorted(known - seen)))  # type: ignore[type-var]
    return [
        f"validation has slides of other centres than training ({unseen}), and every centre stains in its own way: "
        "--stain_jitter strong helps there"
    ]


def _weights_before(resumed: Path | None, weighting: list[str] | None) -> list[float] | None:
    """Return the class weights of the run that goes on, if they were counted and the option is the same; else None.

    UserError: they cannot be read.
    """
    path = resumed and resumed / LABELS_FILE
    if path is None or not path.exists() or weighting != [BALANCED]:
        return None
    try:
        before = json.loads(path.read_text())
        return (
            [float(weight) for weight in before["weights"]] if before["class_weights"] == weighting else None
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error
