"""Finds annotations that may be wrong: where a trained model is confident that they are.

    python -m evaluation.audit --model_path logs/first --slide_path slides --label_path labels --output audit

It predicts the slides as predict.py does, into `<output>/predictions`, and compares them with their annotations. It
can be stopped at any moment and run again; a slide whose annotation was corrected is compared anew. Exit codes: 0 done;
1 some slides could not be used; 2 wrong options or unusable input; 130 Ctrl-C.
"""

from __future__ import annotations

from utils.interrupt import end_quietly

if __name__ == "__main__":  # first, as what follows takes seconds to import
    end_quietly()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import predict
from evaluation.each import pairs_of, warn_of_others
from evaluation.truth import TRUTH_SUFFIXES, find_truth, is_mask
from prediction import store
from prediction.audit.findings import AuditSettings
from prediction.audit.work import Audit, compare, summarise
from prediction.ensemble import ModelSources
from prediction.model import ModelSource
from samplers.labels.label_map import IGNORED, LabelMap, class_names
from samplers.labels.options import add_label_options
from samplers.pairs.names import plain_key
from samplers.pairs.pairing import UNLABELLED, SlidePair
from samplers.pairs.partly_annotated import mark_partly_annotated, read_names
from samplers.patches import bad_slides_allowed
from samplers.slides.errors import DataError
from samplers.slides.stored_slide import slide_name
from utils.cli import (
    HelpFormatter,
    Parser,
    UserError,
    non_negative_float,
    positive_float,
    positive_int,
)
from utils.failures import write_failures_to

PROGRAM = "evaluation.audit"
PREDICTIONS = "predictions"  # in the folder of the results


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Find annotations that a trained model contradicts with confidence, and rank them.",
        formatter_class=HelpFormatter,
    )
    predict.add_options(parser)
    add = parser.add_argument_group("annotations").add_argument
    add("--label_path", type=Path, required=True, help="folder of masks, ASAP .xml or .geojson")
    add_label_options(add)
    add(
        "--unlabelled",
        choices=UNLABELLED,
        default="skip",
        help="what to do with a slide without a label, as in train.py; normal_* are tumour-free",
    )
    add(
        "--partly_annotated",
        type=Path,
        metavar="FILE",
        help="text file with one slide name per line: on these slides --unannotated is ignore",
    )
    add = parser.add_argument_group("regions").add_argument
    add(
        "--confidence",
        type=float,
        default=0.8,
        help="probability of the other side, above 0.5, from which on a disagreement is reported",
    )
    add(
        "--tolerance",
        type=positive_float,
        default=15.0,
        metavar="UM",
        help="distance in µm that outlines may be off: regions narrower than twice this are left out",
    )
    add(
        "--max_shift",
        type=positive_float,
        default=100.0,
        metavar="UM",
        help="largest offset in µm, along each axis, by which an annotation is moved to see if it then agrees",
    )
    add("--regions", type=positive_int, default=20, help="largest number of regions per slide")
    add(
        "--predictions",
        type=Path,
        help="folder of the predictions; that of a predict.py with the same model and options saves the time "
        "(default: predictions in --output)",
    )
    add(
        "--max_bad_slides",
        type=non_negative_float,
        default=0.01,
        help="how many slides may be unusable before the audit stops; below 1 it is a share of the slides, at least "
        "one slide",
    )
    return parser


def audit_settings(options: argparse.Namespace, threshold: float) -> AuditSettings:
    """Return the settings of the options. UserError: --confidence is no confidence."""
    if not max(threshold, 1 - threshold) <= options.confidence < 1:
        raise UserError(
            f"--confidence {options.confidence:g} must be below 1, and at least {max(threshold, 1 - threshold):g}, "
            "from which on a pixel is the other class"
        )
    diameter = 1000 * options.min_lesion_mm
    return AuditSettings(
        threshold, options.confidence, options.tolerance, options.max_shift, diameter, options.regions
    )


def find_audit_pairs(options: argparse.Namespace, slides: Sequence[Path]) -> list[SlidePair]:
    """Return the slides and their labels. DataError: they cannot be paired, see `pairs_of`."""
    truths = find_truth(options.label_path)
    pairs, messages = pairs_of(
        {plain_key(slide_name(path)): path for path in slides}, truths, options.unlabelled
    )
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)
    warn_of_others(options.label_path, truths, TRUTH_SUFFIXES)
    if all(label is None for _, label in pairs.values()):
        raise DataError(f"--label_path {options.label_path}: no slide has a label there")
    found = [SlidePair(slide, label) for slide, label in pairs.values()]
    if options.partly_annotated is not None:
        found = mark_partly_annotated(found, read_names(options.partly_annotated, found))
    return found


def run(options: argparse.Namespace, source: ModelSource | ModelSources, slides: list[Path]) -> int:
    """Predict the slides, compare them with their labels, and return the exit code. Collective."""
    output, predictions = options.output, options.predictions or options.output / PREDICTIONS
    label_map = LabelMap.parse(options.label_map, options.unannotated)
    world = predict.start_ranks(options)

    # 1. Pairs, and the settings: what is wrong with them is said before hours of prediction.
    pairs = world.on_rank_0(lambda: find_audit_pairs(options, slides))
    prediction = world.on_rank_0(lambda: predict.settings_of(options, source))
    settings = audit_settings(options, prediction.threshold)
    world.on_rank_0(lambda: refuse_other_classes(source, label_map))

    # 2. The predictions.
    chosen = argparse.Namespace(**{**vars(options), "output": predictions})
    predict.predict_slides(chosen, source, [pair.slide for pair in pairs], world)
    write_failures_to(output)
    missing = world.on_rank_0(lambda: unpredicted(predictions, pairs))
    allowed = bad_slides_allowed(options.max_bad_slides, len(pairs))

    # 3. The comparison.
    names = [group[0] for group in class_names(options.label_map, label_map.num_classes)]
    as_masks = any(pair.label is not None and is_mask(pair.label) for pair in pairs)
    audit = Audit(output, predictions, label_map, names, prediction, settings, as_masks)
    done = [pair for pair in pairs if pair.name not in missing]
    mine = compare(audit, done[world.rank :: world.size], len(missing), allowed)

    # 4. The table and the summary.
    parts = world.gather(mine)
    return int(world.on_rank_0(lambda: summarise(PROGRAM, audit, parts, missing, allowed)))


def unpredicted(predictions: Path, pairs: Sequence[SlidePair]) -> dict[str, str]:
    """Return the slides that predict.py has left out, with what is said of them."""
    left = [pair.name for pair in pairs if not store.is_finished(predictions, pair.slide)]
    return dict.fromkeys(left, "it could not be predicted, see above")


def refuse_other_classes(source: ModelSource | ModelSources, label_map: LabelMap) -> None:
    """Raise UserError if the model was trained with a label map of which class 0 has other groups.

    Which class above 0 a lesion has makes no difference: lesions of any class are compared.
    """
    trained = source.options.get("label_map")
    if not trained:
        return
    known = dict(LabelMap.parse(trained).groups)
    changed = [
        group
        for group, value in label_map.groups
        if group in known and IGNORED not in (value, known[group]) and bool(value) != bool(known[group])
    ]
    if changed:
        raise UserError(
            f"--label_map gives {', '.join(changed)} another class than the training of the model: it had --label_map "
            f"{' '.join(trained)}"
        )


def main(argv: list[str] | None = None) -> int:
    return predict.main(argv, build_parser(), run)


if __name__ == "__main__":
    sys.exit(main())
