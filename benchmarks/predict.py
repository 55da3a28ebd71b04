"""Speed of whole-slide prediction, in megapixels of patches and of tissue per second, against the bare forward pass.

    python benchmarks/predict.py --model_path logs/demo-... --slide_path data/demo/validation/slides \
        --output /tmp/benchmark --img_size 512

The options are those of predict.py; --output must hold no predictions yet. The time includes all that predict.py does
but loading the model: checks, tissue, reading, blending, lesions, TIFFs. The bare rate is that of the same traced
function on one batch of noise, before and after each slide. Patches overlap and reach beyond the tissue: their pixels
count each time that they are predicted, pixels of tissue (with its margin) count once. The ratio is that of the pixels
of patches. The last line is a JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import predict
from prediction import store
from prediction.ensemble import load_models
from prediction.work import Opened, PatchModel, Worker
from utils.ranks.devices import select_devices
from utils.ranks.single import Ranks
from utils.ranks.world import World
from utils.startup import configure_environment

BARE_BATCHES = 8  # predicted before and after each slide


def bare(predictor: PatchModel, batch_size: int, side: int) -> float:
    """Return megapixels/s of the forward pass alone."""
    images = np.random.default_rng(0).integers(0, 255, (batch_size, side, side, 3), dtype=np.uint8)
    start = time.perf_counter()
    for _ in range(BARE_BATCHES):
        predictor(images)
    return BARE_BATCHES * images[..., 0].size / 1e6 / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> None:
    options, source, slides = predict.parse_options(argv)
    configure_environment(options)
    select_devices(World(), options.no_cuda)
    settings = predict.settings_of(options, source)
    store.prepare(options.output, settings)
    predictor = load_models(
        source, options.mixed_precision, settings.img_size, settings.tta, options.trust_weights
    )
    names = predict.outline_names(source, predictor.classes)
    batch = settings.batch_size, settings.img_size
    bare(predictor, *batch)  # the first batches are slow
    rates, bares, tissues = [], [bare(predictor, *batch)], []
    for path in slides:
        opened = Opened(path, options.output, settings)
        tissue = opened.grid.tissue_at(0, opened.grid.frame.height).sum() / 1e6
        opened.close()
        worker = Worker(options.output, settings, predictor, names, Ranks(), lambda slides, patches: None)
        start = time.perf_counter()
        outcome = worker.run([path])
        seconds = time.perf_counter() - start
        if outcome.bad or outcome.error:
            raise SystemExit(f"{path}: {outcome.bad or outcome.error}")
        rates.append(outcome.patches * settings.img_size**2 / 1e6 / seconds)
        tissues.append(tissue / seconds)
        bares.append(bare(predictor, *batch))
    ratios = [rate * 2 / (before + after) for rate, before, after in zip(rates, bares, bares[1:])]
    found = {
        "img_size": settings.img_size,
        "batch_size": settings.batch_size,
        "overlap": settings.overlap,
        "slides": len(rates),
        "patch_megapixels_per_second": round(median(rates), 3),
        "tissue_megapixels_per_second": round(median(tissues), 3),
        "bare_megapixels_per_second": round(median(bares), 3),
        "ratio_to_bare": round(median(ratios), 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
