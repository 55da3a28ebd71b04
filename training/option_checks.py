"""Parses the options of train.py and checks them as far as that goes without TensorFlow and without the slides.

An option that would do nothing, because of another option, is refused: nobody should believe that it was at work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from models.catalog import EfficientDetRow, lookup, multiple_of
from models.weight_files import WeightsError, find_weights, guess_model
from samplers.labels.label_map import LabelMap, class_names
from samplers.pairs.names import patient_pattern
from training.class_weights import BALANCED, parse_class_weights
from training.options import build_parser, given_options
from training.tracking import tracker_problems
from utils.cli import UserError
from utils.ranks.launcher import launcher_rank

DEBUG_IMAGES = 100
DEBUG_MINUTES = 1.0  # for whole slides
DEBUG_FOLDER = "debug"  # in the log_dir


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options. End the program with exit code 2 for what is wrong.

    The SURF sampler works at level 0 unless a resolution was given: then `resolution` is None.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    given = given_options(argv)
    if options.data_sampler == "surf" and "resolution" not in given:
        options.resolution = None
    if options.dataset is not None and options.data_root is None and options.slide_path is None:
        options.data_root = Path(os.environ["CAMELYON_ROOT"]) if "CAMELYON_ROOT" in os.environ else None
    for problem in _path_problems(options):
        parser.error(problem)
    if options.weights_path is not None:
        _choose_model(options, "model" in given, parser)
    for problem in problems(options, given):
        parser.error(problem)
    if options.debug:
        options.planned_steps = options.num_steps
        options.planned_validation_patches = options.validation_patches
        options.num_steps = min(options.num_steps, DEBUG_IMAGES)
        options.validation_patches = min(options.validation_patches, DEBUG_IMAGES)
        options.planned_slides_minutes = options.validate_slides_minutes
        options.validate_slides_minutes = min(options.validate_slides_minutes, DEBUG_MINUTES)
        options.log_dir = options.log_dir and options.log_dir / DEBUG_FOLDER
    if options.warmup_steps < 0:
        options.warmup_steps = options.num_steps // 20
    return options


def check_device_options(options: argparse.Namespace, on_gpu: bool) -> None:
    """Raise UserError for an option that the rank's device cannot follow, or that does nothing there."""
    if options.deterministic and on_gpu:
        raise UserError(
            "--deterministic works on CPUs: TensorFlow has no deterministic kernels on GPUs for some operations; add "
            "--no_cuda"
        )
    if options.jit and not on_gpu:
        raise UserError(
            "--jit works on GPUs: on CPUs XLA's convolutions take many times as long as oneDNN's; leave it out"
        )


def problems(options: argparse.Namespace, given: set[str]) -> Iterator[str]:
    """Yield what is wrong with options but for folders and files: `given` are the names of those that were typed."""
    yield from _value_problems(options)
    yield from _useless(options, given)


def _path_problems(options: argparse.Namespace) -> Iterator[str]:
    """Yield what is wrong with the folders and files that were named, or not named."""
    if options.dataset is not None and options.data_root is None and options.slide_path is None:
        yield "--dataset needs its folder: --data_root, or CAMELYON_ROOT in the environment"
    if options.slide_path is None and options.dataset is None:
        yield "--slide_path, the folder of the training slides, is missing (or --dataset with --data_root)"
    if options.slide_path is None and options.label_path is not None:
        yield "--label_path goes with --slide_path"
    if (options.valid_slide_path is None) != (options.valid_label_path is None):
        yield "--valid_slide_path and --valid_label_path go together"
    for name in (
        "data_root",
        "slide_path",
        "label_path",
        "valid_slide_path",
        "valid_label_path",
        "partly_annotated",
    ):
        path = getattr(options, name)
        if path is not None and not path.exists():
            yield f"--{name}: there is no {path}"


def _value_problems(options: argparse.Namespace) -> Iterator[str]:
    """Yield values that cannot be used, and options that exclude each other."""
    yield from _label_problems(options)
    if options.patient_pattern is not None:
        try:
            patient_pattern(options.patient_pattern)
        except ValueError as error:
            yield f"--patient_pattern: {error}"
    if options.valid_slide_path is None and not 0 < options.val_split < 1:
        yield f"--val_split {options.val_split} leaves no slides for training or for validation"
    yield from _size_problems(options)
    if options.pos_pixel_weight == options.neg_pixel_weight == 0:
        yield "--pos_pixel_weight and --neg_pixel_weight are both 0: there is nothing to learn"
    if options.adasum and options.accumulate_steps > 1:
        yield "--adasum does not go with --accumulate_steps"
    if options.accumulate_steps > 1 and options.mixed_precision == "float16":
        # Its loss scale would be lowered on the one rank whose batch overflows, before the reduction.
        yield "--accumulate_steps does not go with --mixed_precision float16: take bfloat16"
    if options.accumulate_steps > 1 and not options.horovod:
        yield "--accumulate_steps needs Horovod: take off --no-horovod"
    if (options.folds is None) != (options.fold is None):
        yield "--folds and --fold go together; sh run_folds.sh trains all folds"
    elif options.folds is not None and not 1 <= options.fold <= options.folds:
        yield f"--fold {options.fold} is not from 1 to --folds {options.folds}"
    if options.folds == 1:
        yield "--folds 1 leaves no slides for training: take at least 2"
    if options.best_by != "miou" and options.validate_slides is None:
        yield f"--best_by {options.best_by} is a score of whole slides: add --validate_slides"
    words = options.validate_slides or []
    if len(words) == 1 and words[0].isdecimal() and int(words[0]) == 0:
        yield "--validate_slides 0 takes no slides: leave it out"
    yield from tracker_problems(options)
    if options.debug and options.resume:
        yield "--debug always begins anew: take off --resume"


def _size_problems(options: argparse.Namespace) -> Iterator[str]:
    """Yield why patches of this size cannot be computed, or not by this number of ranks."""
    multiple, ranks = multiple_of(options.model), options.ranks_per_patch
    if options.img_size % multiple:
        nearest = max(multiple, round(options.img_size / multiple) * multiple)
        yield (
            f"--img_size {options.img_size} is no multiple of {multiple}, which {options.model} needs: take {nearest}"
        )
    elif options.img_size < ranks:
        yield f"--ranks_per_patch {ranks} is more than the rows of a patch: take {options.img_size} or less"
    if ranks > 1 and options.adasum:
        yield "--adasum does not go with --ranks_per_patch: the gradients of the ranks of a patch are added up"
    if ranks > 1 and options.sync_batch_norm:
        yield (
            "--sync_batch_norm does not go with --ranks_per_patch: the statistics are those of the whole patches of a "
            "group of ranks"
        )
    if ranks > 1 and not options.horovod:
        yield "--ranks_per_patch needs Horovod: take off --no-horovod"


def _label_problems(options: argparse.Namespace) -> Iterator[str]:
    """Yield what is wrong with the label map and the weights of its classes."""
    try:
        label_map = LabelMap.parse(options.label_map, options.unannotated)
    except UserError as error:
        yield f"--label_map: {error}"
        return
    if options.class_weights not in (None, [BALANCED]):
        try:
            parse_class_weights(options.class_weights, class_names(options.label_map, label_map.num_classes))
        except UserError as error:
            yield str(error)


def _useless(options: argparse.Namespace, given: set[str]) -> Iterator[str]:
    """Yield options that were typed but would do nothing in this combination."""
    efficientdet = isinstance(lookup(options.model), EfficientDetRow)
    own_slides, own_validation = options.slide_path is not None, options.valid_slide_path is not None
    weights = "pos_pixel_weight", "neg_pixel_weight", "class_weights"
    rules = [
        (efficientdet, ("output_stride",), f"is DeepLabV3+'s, the model is {options.model}"),
        (
            not efficientdet,
            ("fpn_min_level", "fpn_cells"),
            f"is EfficientDet's, the model is {options.model}",
        ),
        (options.data_sampler != "radboud", ("annotation_weighting",), "is the Radboud sampler's"),
        (own_slides, ("dataset",), "does nothing beside --slide_path: take one of the two"),
        (options.dataset is None or own_slides, ("data_root",), "goes with --dataset 16 or 17"),
        (own_validation, ("val_split",), "does nothing beside --valid_slide_path: nothing is split off"),
        (not own_validation, ("valid_slide_format", "valid_label_format"), "goes with --valid_slide_path"),
        (own_slides and options.label_path is None, ("label_format",), "goes with --label_path"),
        (not options.augment, ("stain_jitter",), "does not go with --no-augment"),
        (not options.hard_mining, ("hard_mining_threshold", "hard_mining_tries"), "goes with --hard_mining"),
        (
            options.loss == "dice",
            weights,
            "does nothing with --loss dice",
        ),
        (
            options.class_weights is not None,
            weights[:2],
            "does nothing beside --class_weights: take one of the two",
        ),
        (options.dataset is None or own_slides, ("all_annotations",), "goes with --dataset 16 or 17"),
        (options.debug, ("resume_force",), "does nothing with --debug, which always begins anew"),
        (options.optimizer == "adam", ("weight_decay",), "does not go with --optimizer adam: take adamw"),
        (
            not options.horovod,
            ("fp16_allreduce", "adasum", "sync_batch_norm"),
            "does nothing with --no-horovod",
        ),
        (options.adasum, ("lr_scaling",), "does nothing with --adasum"),
        (options.freeze_bn == 1, ("bn_momentum", "sync_batch_norm"), "does nothing with --freeze_bn 1"),
        (
            options.folds is not None,
            ("val_split", "valid_slide_path", "valid_label_path", "train_centers", "val_centers"),
            "does not go with --folds, which divide the slides for training",
        ),
        (options.folds is None, ("folds_by",), "goes with --folds"),
        (
            options.validate_slides is None,
            ("validate_slides_every", "validate_slides_minutes"),
            "goes with --validate_slides",
        ),
        (options.tracker is None, ("tracker_uri", "track_model"), "goes with --tracker"),
        (options.log_dir is None, ("resume_force",), "needs the --log_dir of the run to go on with"),
    ]
    for does_nothing, names, why in rules:
        for name in names:
            if does_nothing and name in given:
                yield f"--{name} {why}"
    if options.profile is not None and options.profile[0] >= options.num_steps:
        yield f"--profile begins at step {options.profile[0]}, but the run has {options.num_steps} steps"


def _choose_model(options: argparse.Namespace, model_given: bool, parser: argparse.ArgumentParser) -> None:
    """Take the model that the weights are of, where none was asked for; an error where another one was."""
    try:
        found = guess_model(find_weights(options.weights_path))
    except WeightsError as error:
        parser.error(f"--weights_path: {error}")
    if found is None or lookup(found) == lookup(options.model):
        return
    if model_given:
        parser.error(f"--weights_path {options.weights_path} is of {found}, not of --model {options.model}")
    if launcher_rank()[0] == 0:
        sys.stderr.write(f"{options.weights_path} is of {found}: --model {found} is taken\n")
    options.model = found
