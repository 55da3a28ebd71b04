"""Measures whether an ensemble disagrees where it is wrong: area under the ROC curve of error against uncertainty.

    python benchmarks/uncertainty.py --predictions out --ground_truth masks

`--predictions` is the --output of a predict.py with several models. Counted are the pixels, every `--step`-th of each
row and column, where it looked (the entropy is above 0) and the label is known. 0.5 is chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.truth import find_files, find_truth
from samplers.labels.label import open_label
from samplers.labels.label_map import IGNORED, LabelMap
from samplers.slides.frame import described_frame
from samplers.slides.slide import Slide


def values_of(
    predictions: Path, name: str, label: Path, step: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return bool (n,), where the prediction is wrong, and the uncertainties there: uint8 (n,) by kind."""
    said = described_frame(predictions / f"{name}_prediction.tif")
    assert said is not None, f"{name}: was not written by predict.py"
    frame, downsample = said
    maps = {}
    for kind in ("prediction", "disagreement", "entropy"):
        with Slide(predictions / f"{name}_{kind}.tif", kind="label") as raster:
            maps[kind] = raster.read_level(0, 0, raster.width, raster.height, 0)[
                step // 2 :: step, step // 2 :: step
            ]
    rows, columns = maps["prediction"].shape
    truth = open_label(label, frame, LabelMap())
    corner = (
        downsample * (step // 2 + 0.5 - step / 2),
    ) * 2  # so that points are the middles of these pixels
    true = truth.read_at(*corner, columns, rows, step * downsample)
    truth.close()
    counts = (maps["entropy"] > 0) & (true != IGNORED)
    wrong = (maps["prediction"] > 0) != (true > 0)
    return wrong[counts], {kind: maps[kind][counts] for kind in ("disagreement", "entropy")}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--ground_truth", type=Path, required=True)
    parser.add_argument(
        "--step", type=int, default=4, help="of the pixels, one in so many of a row or column"
    )
    options = parser.parse_args(argv)
    labels = find_truth(options.ground_truth)
    for name, path in find_files(options.predictions, (".tif",), "_disagreement").items():
        slide = path.stem.removesuffix("_disagreement")
        label = labels.get(name.removesuffix("_disagreement"))
        if label is None:
            continue
        wrong, uncertain = values_of(options.predictions, slide, label, options.step)
        found = {kind: round(float(roc_auc_score(wrong, values)), 4) for kind, values in uncertain.items()}
        print(
            json.dumps(
                {"slide": slide, "pixels": len(wrong), "wrong": round(float(wrong.mean()), 5), **found}
            )
        )


if __name__ == "__main__":
    main()
