"""The options of train.py. `build_parser` lists them; `training.option_checks.parse_options` also checks them.

The first group has the names, defaults, choices and meaning of the original suite; the others are ours.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from models.catalog import FPN_MIN_LEVELS, MODELS, OUTPUT_STRIDES, RECOMPUTE
from models.from_options import AUTO, PRECISIONS
from samplers.augment import JITTERS
from samplers.labels.label_map import UNANNOTATED
from samplers.labels.options import LABEL_MAP_HELP, UNANNOTATED_HELP
from training.choices import BEST_BY, FOLDS_BY, LOSSES, OPTIMIZERS
from training.schedule import SCALINGS, SCHEDULES
from utils.cli import (
    HelpFormatter,
    Parser,
    fraction,
    hours_minutes,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    random_seed,
    step_range,
)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description="Train a semantic segmentation of whole-slide images with a large field of view. "
        "A step is one image: a batch of B patches on each of N ranks is B*N steps.",
        formatter_class=HelpFormatter,
    )
    _add_original_options(parser)
    _add_data_options(parser)
    _add_model_options(parser)
    _add_training_options(parser)
    _add_run_options(parser)
    return parser


def _add_original_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("options of the original suite").add_argument
    add("--img_size", type=positive_int, default=1024, help="side of a patch in pixels")
    add(
        "--batch_size",
        type=positive_int,
        default=2,
        help="patches per batch and rank (or group of --ranks_per_patch)",
    )
    add("--num_steps", type=positive_int, default=50000, help="number of training steps (images)")
    add("--val_split", type=fraction, default=0.15, help="share of the slides that is used for validation")
    add("--model", choices=list(MODELS), default="effdetd0", help="EfficientDet or DeepLabV3+")
    add("--no_cuda", action="store_true", help="do not use GPUs")
    add(
        "--horovod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on several ranks with Horovod",
    )
    add("--fp16_allreduce", action="store_true", help="send gradients between ranks as FP16")
    add("--dataset", choices=["16", "17"], help="train on CAMELYON16 or 17 in its public layout")
    others = "-1 for all that the other option does not name"
    add("--train_centers", type=int, nargs="+", default=[-1], help=f"medical centres for training, {others}")
    add("--val_centers", type=int, nargs="+", default=[-1], help=f"medical centres for validation, {others}")
    add("--hard_mining", action="store_true", help="replace patches that the model gets right by new ones")
    add("--slide_path", type=Path, help="folder of the training slides")
    add("--label_path", type=Path, help="folder of the training labels")
    add("--valid_slide_path", type=Path, help="folder of the validation slides")
    add("--valid_label_path", type=Path, help="folder of the validation labels")
    add("--weights_path", type=Path, help="file or folder of pre-trained weights")
    add(
        "--slide_format",
        default="tif",
        help="file ending of the training slides; dcm and zarr are folders",
    )
    add(
        "--label_format", default="tif", help="format of the training labels: tif or png, xml (ASAP), geojson"
    )
    add("--valid_slide_format", default="tif", help="file ending of the validation slides")
    add("--valid_label_format", default="tif", help="format of the validation labels")
    add(
        "--data_sampler",
        choices=["radboud", "surf"],
        default="radboud",
        help="how training patches are drawn",
    )
    add(
        "--bb_downsample",
        type=non_negative_int,
        default=7,
        help="level of the slide's pyramid on which tissue and tumour are found, a finer one if its pixels are larger "
        "than 64 µm",
    )
    add("--batch_tumor_ratio", type=fraction, default=1.0, help="share of the patches that contain tumour")
    add(
        "--sample_processes", type=positive_int, default=1, help="worker processes per rank that draw patches"
    )
    add(
        "--resolution",
        type=positive_float,
        default=0.25,
        help="spacing of the patches in µm/px; the SURF sampler uses level 0 unless this is given",
    )
    add(
        "--label_map",
        nargs="+",
        metavar="GROUP:CLASS",
        help=LABEL_MAP_HELP,
    )
    add("--log_dir", type=Path, help="folder of the run (default: logs/<model>_<img_size>_<time>)")
    add("--log_every", type=positive_int, default=128, help="steps between two logs")
    add("--validate_every", type=positive_int, default=2048, help="steps between two validations")
    add(
        "--debug",
        action="store_true",
        help="run 100 training and validation images, say what the whole run would take, and write to the folder "
        "'debug' in --log_dir, which a later run does not look at",
    )
    add(
        "--pos_pixel_weight", type=non_negative_float, default=1.0, help="weight of tumour pixels in the loss"
    )
    add(
        "--neg_pixel_weight",
        type=non_negative_float,
        default=1.0,
        help="weight of all other pixels in the loss",
    )


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--data_root",
        type=Path,
        help="folder of the --dataset (default: the environment variable CAMELYON_ROOT)",
    )
    add(
        "--seed",
        type=random_seed,
        default=0,
        help="random seed for the split, the weights, the patches and the augmentation",
    )
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="flip, turn and stain-jitter the training patches",
    )
    add(
        "--stain_jitter",
        choices=list(JITTERS),
        default="light",
        help="strength of the stain jitter; strong helps on slides of centres that are not in the training set",
    )
    add(
        "--unlabelled",
        choices=["skip", "normal", "error"],
        default="skip",
        help="what to do with a slide without a label: leave it out with a warning, take it as free of tumour, or stop",
    )
    add(
        "--patient_pattern",
        metavar="REGEX",
        help="regular expression for the names of the slides, whose first group is the patient: all slides of a "
        "patient are on one side of the split (default: patients of CAMELYON17 and barcodes of TCGA)",
    )
    add(
        "--folds",
        type=positive_int,
        metavar="N",
        help="cross-validation: divide the slides into N folds, of which --fold is for validation (run_folds.sh trains "
        "them all). Slides with and without a label are spread evenly; with --dataset 16 the test set is not used",
    )
    add("--fold", type=positive_int, metavar="K", help="number of the fold for validation, from 1 on")
    add(
        "--folds_by",
        choices=FOLDS_BY,
        default="patient",
        help="what stays in one fold: all slides of a patient, or of a medical centre",
    )
    add(
        "--unannotated",
        choices=list(UNANNOTATED),
        default="background",
        help=UNANNOTATED_HELP,
    )
    add(
        "--min_known",
        type=fraction,
        default=0.1,
        help="smallest share of a patch that must be known, where the label has pixels that are not",
    )
    add(
        "--partly_annotated",
        type=Path,
        metavar="FILE",
        help="text file with one slide name per line: on these slides --unannotated is ignore; those of CAMELYON16 "
        "are known to --dataset 16",
    )
    add(
        "--all_annotations",
        action="store_true",
        help="with --dataset, take slides that are known to be doubled, or annotated in part, as they are",
    )
    add(
        "--skip_bad_slides",
        action="store_true",
        help="leave out slides that fail the check instead of stopping",
    )
    add(
        "--max_bad_slides",
        type=non_negative_float,
        default=0.01,
        help="how many slides may become unreadable before the run stops, of those for training and of those for "
        "validation each; below 1 it is a share of the slides, at least one slide",
    )
    add(
        "--annotation_weighting",
        choices=["balanced", "count", "area"],
        default="balanced",
        help="how the Radboud sampler chooses an annotation: every class equally often, every annotation equally "
        "often, or in proportion to its area",
    )
    add(
        "--validation_patches",
        type=positive_int,
        default=512,
        help="largest number of patches per validation, over all ranks",
    )
    add(
        "--validate_slides",
        nargs="+",
        metavar="N|SLIDE",
        help="also validate on whole slides: on so many of the validation slides, with and without a label in turn, or "
        "on those of these names. All ranks predict them together, as predict.py does",
    )
    add(
        "--validate_slides_every",
        type=positive_int,
        help="steps between two validations on whole slides; there is one at the end in any case (default: a tenth of "
        "--num_steps)",
    )
    add(
        "--validate_slides_minutes",
        type=positive_float,
        default=10.0,
        help="longest time in minutes that the training waits for whole slides; those that are not finished then are "
        "left out and named",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--fpn_min_level",
        type=int,
        choices=FPN_MIN_LEVELS,
        default=1,
        help="EfficientDet: finest level of the BiFPN; 3 as published takes the least memory",
    )
    add(
        "--fpn_cells",
        type=positive_int,
        help="EfficientDet: number of BiFPN cells (default: as published, 3 for D0 and 7 for D4)",
    )
    add(
        "--output_stride",
        type=int,
        choices=OUTPUT_STRIDES,
        default=16,
        help="DeepLabV3+: output stride of the encoder",
    )
    add(
        "--mixed_precision",
        choices=(AUTO, *PRECISIONS),
        default=AUTO,
        help="number format that the network computes in; weights, logits and loss stay float32. auto is bfloat16 "
        "where the CPUs of all ranks have it, else float32",
    )
    add(
        "--ranks_per_patch",
        type=positive_int,
        default=1,
        help="consecutive ranks that share each patch: each one has a strip of it and of the activations, and the "
        "result is the same",
    )
    add(
        "--recompute",
        choices=RECOMPUTE,
        default="none",
        help="save memory by computing activations again in the backward pass: those inside of blocks, or all",
    )


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add(
        "--learning_rate",
        type=positive_float,
        default=2e-3,
        help="peak learning rate for one rank, see --lr_scaling",
    )
    add("--loss", choices=LOSSES, default="cross_entropy", help="loss; dice takes no class weights")
    add(
        "--class_weights",
        nargs="+",
        metavar="NAME:WEIGHT",
        help="weight of classes in the loss by name or number, others weigh 1; or 'balanced', with which all classes "
        "count alike (default: --pos_pixel_weight and --neg_pixel_weight)",
    )
    add(
        "--warmup_steps",
        type=int,
        default=-1,
        help="steps of linear warm-up, at the start and after --freeze_bn; -1 means a 20th of the steps",
    )
    add("--bn_momentum", type=fraction, default=0.9, help="momentum of batch norm's moving averages")
    add(
        "--freeze_bn",
        type=fraction,
        default=0.75,
        help="last share of the steps that is trained with frozen batch norm, as in inference: large patches mean "
        "small batches, whose statistics the exported model does not see",
    )
    add(
        "--sync_batch_norm",
        action="store_true",
        help="compute batch norm's statistics over the batches of all ranks",
    )
    add(
        "--accumulate_steps",
        type=positive_int,
        default=1,
        help="batches per rank whose gradients are averaged before the ranks' are reduced and the weights updated",
    )
    add(
        "--adasum",
        action="store_true",
        help="combine the ranks' gradients by Adasum (arXiv 2006.02924) instead of their mean; the learning rate is "
        "then not scaled with the number of ranks",
    )
    add(
        "--lr_schedule",
        choices=list(SCHEDULES),
        default="cosine",
        help="schedule of the learning rate after the warm-up",
    )
    add(
        "--lr_scaling",
        choices=list(SCALINGS),
        default="linear",
        help="multiply the learning rate by the number of ranks, by its square root, or by 1",
    )
    add(
        "--hard_mining_threshold",
        type=fraction,
        default=0.95,
        help="mIoU from which on --hard_mining replaces a patch",
    )
    add(
        "--hard_mining_tries",
        type=positive_int,
        default=3,
        help="largest number of rounds of --hard_mining per batch",
    )
    add("--optimizer", choices=list(OPTIMIZERS), default="adam", help="optimizer; sgd has a momentum of 0.9")
    usual = ", ".join(f"{decay:g} for {name}" for name, decay in OPTIMIZERS.items() if decay)
    add(
        "--weight_decay",
        type=non_negative_float,
        help=f"decoupled weight decay of the kernels, times the learning rate (default: {usual}, else 0)",
    )
    add(
        "--clip_norm",
        type=non_negative_float,
        default=1.0,
        help="clip the global norm of the gradients, after the allreduce; 0 disables clipping",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add(
        "--early_stopping",
        type=non_negative_int,
        default=0,
        help="end the run after this many validations in a row without a better score of --best_by; 0 never does",
    )
    add(
        "--best_by",
        choices=BEST_BY,
        default="miou",
        help="score that decides which checkpoint is kept as the best: the mIoU of the validation patches, or of the "
        "slides of --validate_slides the corrected FROC score of lesions, the AUC of slides or the Dice of tumour",
    )
    add(
        "--time_limit",
        type=hours_minutes,
        metavar="HH:MM",
        help="stop with a checkpoint and exit code 75 before this time since the start is over",
    )
    add(
        "--stall_limit",
        type=non_negative_float,
        default=30.0,
        help="minutes for which a rank may hang before a run of several ranks ends with a checkpoint and exit code 76, "
        "0 for ever; it is named after a minute",
    )
    add(
        "--histograms",
        action="store_true",
        help="write histograms of the weights for TensorBoard at each validation",
    )
    add(
        "--profile",
        type=step_range,
        metavar="START:STOP",
        help="steps to profile for TensorBoard's profiler",
    )
    add(
        "--tracker",
        choices=["mlflow"],
        help="also keep options, metrics, report and model card in this tracker of runs; mlflow needs the package "
        "mlflow-skinny",
    )
    add(
        "--tracker_uri",
        metavar="URI",
        help="address of the tracker; nothing is sent anywhere without one (default: MLFLOW_TRACKING_URI, or files in "
        "<log_dir>/mlruns)",
    )
    add("--track_model", action="store_true", help="keep the exported model in the tracker as well")
    add(
        "--checkpoint_every",
        type=positive_int,
        help="steps between two checkpoints, besides those at each validation",
    )
    add(
        "--keep_checkpoints",
        type=positive_int,
        default=2,
        help="number of newest checkpoints to keep, besides the best",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --log_dir, or begin if there is none (an existing run is also continued without "
        "this option)",
    )
    add(
        "--resume_force",
        action="store_true",
        help="go on with the run in --log_dir although its options differ",
    )
    add(
        "--deterministic",
        action="store_true",
        help="give the same bits each time on the same number of threads of CPUs; slower",
    )
    add(
        "--jit",
        action="store_true",
        help="on GPUs: let XLA compile what lies between the reductions over ranks; the first steps take minutes",
    )
    add(
        "--memory_report",
        action="store_true",
        help="first measure the memory of a training step, say what fits, and stop if this run does not",
    )
    add("--verbose", action="store_true", help="show TensorFlow's own messages")


def given_options(argv: list[str] | None = None) -> set[str]:
    """Return the names of the options that were typed, as against those that have their default."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def option_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the resolved options as options.json holds them: sorted by name, with absolute paths."""
    return {
        name: os.path.abspath(v) if isinstance(v, Path) else v
        for name, v in sorted(vars(options).items())
        if not name.startswith("planned_")  # the values that --debug has cut are no options
    }
