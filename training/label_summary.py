"""What the labels of a run's slides hold: classes with their areas, what is ignored, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplers.labels.label_map import IGNORED, LabelMap, class_names
from samplers.pairs.checks import LabelFacts
from samplers.pairs.pairing import SlidePair


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
            areas.update(facts[pair].areas or {})  # type: ignore[arg-type]  # of floats
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
        classes = {names[value][0]: area for value, area in self.areas.items() if value != IGNORED}
        return {
            "slides": self.slides,
            "labelled": self.labelled,
            "mm2": classes,
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


def names_of(label_map_option: Sequence[str] | None, label_map: LabelMap) -> list[list[str]]:
    return class_names(label_map_option, label_map.num_classes)
