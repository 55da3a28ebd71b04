"""The options of train.py: `build_parser` lists them, `parse_options` also checks what needs no TensorFlow.

The first group has the names, defaults, choices and meaning of the original suite; the others are ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from models.catalog import (
    FPN_MIN_LEVELS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    OUTPUT_STRIDES,
    RECOMPUTE,
    lookup,
    multiple_of,
)
from models.weight_files import WeightsError, find_weights, guess_model
from samplers.augment import JITTERS
from samplers.labels.label import LabelMap
from training.schedule import SCALINGS, SCHEDULES
from utils.cli import (
    Parser,
    fraction,
    hours_minutes,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    step_range,
)
from utils.ranks.launcher import launcher_rank
from utils.startup import NVIDIA

DEBUG_IMAGES = 100


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description="Train a semantic segmentation of whole-slide images with a large field of view. "
        "A step is one image: a batch of B on N ranks is B*N steps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_original_options(parser)
    _add_data_options(parser)
    _add_model_options(parser)
    _add_training_options(parser)
    _add_run_options(parser)
    return parser


def _add_original_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("options of the original suite").add_argument
    add("--img_size", type=positive_int, default=1024, help="image size to use, in pixels")
    add("--batch_size", type=positive_int, default=2, help="batch size (a rank)")
    add("--num_steps", type=positive_int, default=50000, help="number of steps; a batch of 2 is 2 steps")
    add("--val_split", type=fraction, default=0.15, help="part of the slides that is used for validation")
    add("--model", choices=list(MODELS), default="effdetd0", help="EfficientDet or DeepLabV3+")
    add("--no_cuda", action="store_true", help="do not use CUDA")
    add(
        "--horovod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="distributed training via Horovod",
    )
    add("--fp16_allreduce", action="store_true", help="reduce gradients in FP16")
    add("--dataset", choices=["16", "17"], help="CAMELYON16 or 17 in its public layout, in --data_root")
    all_others = "-1 for all that the other option does not name"
    add("--train_centers", type=int, nargs="+", default=[-1], help=f"centres for training, {all_others}")
    add("--val_centers", type=int, nargs="+", default=[-1], help=f"centres for validation, {all_others}")
    add("--hard_mining", action="store_true", help="replace patches that the model gets right by new draws")
    add("--slide_path", type=Path, help="folder of the training slides")
    add("--label_path", type=Path, help="folder of their labels")
    add("--valid_slide_path", type=Path, help="folder of the validation slides")
    add("--valid_label_path", type=Path, help="folder of their labels")
    add("--weights_path", type=Path, help="file or folder of pre-trained weights")
    add("--slide_format", default="tif", help="format (file ending) of the slides")
    add("--label_format", default="tif", help="format of the labels: tif or png masks, ASAP xml, geojson")
    add("--valid_slide_format", default="tif", help="format of the validation slides")
    add("--valid_label_format", default="tif", help="format of the validation labels")
    add("--data_sampler", choices=["radboud", "surf"], default="radboud", help="which sampler to use")
    add(
        "--bb_downsample",
        type=non_negative_int,
        default=7,
        help="level of the slide on which regions are found",
    )
    add("--batch_tumor_ratio", type=fraction, default=1.0, help="part of the batch that contains tumour")
    add("--sample_processes", type=positive_int, default=1, help="processes of the sampler (a rank)")
    add("--resolution", type=positive_float, default=0.25, help="spacing of the patch in µm/px")
    add("--label_map", nargs="+", metavar="KEY:VAL", help="annotation group -> class, painted in this order")
    add("--log_dir", type=Path, help="where logs go (none: logs/<model>_<img_size>_<time>)")
    add("--log_every", type=positive_int, default=128, help="log every X steps")
    add("--validate_every", type=positive_int, default=2048, help="validate every X steps")
    add("--debug", action="store_true", help="only 100 images")
    add(
        "--pos_pixel_weight", type=non_negative_float, default=1.0, help="weight of tumour pixels in the loss"
    )
    add("--neg_pixel_weight", type=non_negative_float, default=1.0, help="weight of the other pixels")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--data_root", type=Path, help="folder of the --dataset (none: the environment's CAMELYON_ROOT)")
    add("--seed", type=int, default=0, help="of the split, the weights, the patches and the augmentation")
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="flips, quarter turns and stain jitter of the training patches",
    )
    add(
        "--stain_jitter",
        choices=list(JITTERS),
        default="light",
        help="of the augmentation; strong for other centres than those of the training slides",
    )
    add(
        "--unlabelled",
        choices=["skip", "normal", "error"],
        default="skip",
        help="a slide without label: left out with a warning, free of tumour, or an error",
    )
    add("--skip_bad_slides", action="store_true", help="go on without the slides that fail the check")
    add(
        "--max_bad_slides",
        type=non_negative_float,
        default=0.01,
        help="slides (below 1: part of them, at least one) that may become unreadable during training",
    )
    add(
        "--annotation_weighting",
        choices=["balanced", "count", "area"],
        default="balanced",
        help="how radboud chooses an annotation: classes alike, each annotation alike, or by its area",
    )
    add(
        "--validation_patches",
        type=positive_int,
        default=512,
        help="the most patches that are validated on, over all ranks",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--fpn_min_level",
        type=int,
        choices=FPN_MIN_LEVELS,
        default=1,
        help="EfficientDet: finest BiFPN level",
    )
    add("--fpn_cells", type=positive_int, help="EfficientDet: BiFPN cells (none: as published, D0 3, D4 7)")
    add("--output_stride", type=int, choices=OUTPUT_STRIDES, default=16, help="DeepLabV3+: of its encoder")
    add(
        "--mixed_precision",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="what the network computes in; weights, logits and loss stay float32",
    )
    add(
        "--recompute",
        choices=RECOMPUTE,
        default="none",
        help="activations that are computed again for the gradient instead of kept: those within blocks, or all",
    )


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--learning_rate", type=positive_float, default=1e-3, help="of one rank, see --lr_scaling")
    add("--loss", choices=LOSSES, default="cross_entropy", help="dice takes no pixel weights")
    add(
        "--warmup_steps",
        type=int,
        default=-1,
        help="steps of linear warm-up, also after --freeze_bn; -1: a 20th",
    )
    add("--bn_momentum", type=fraction, default=0.9, help="of batch norm's moving averages")
    add(
        "--freeze_bn",
        type=fraction,
        default=0.5,
        help="last part of the steps, trained with batch norm's moving averages as in inference: large patches "
        "mean small batches, whose statistics the exported model does not see",
    )
    add(
        "--sync_batch_norm",
        action="store_true",
        help="batch norm's statistics over the batches of all ranks (Horovod's layer)",
    )
    add(
        "--accumulate_steps",
        type=positive_int,
        default=1,
        help="batches a rank whose gradients are averaged before they are reduced and the weights updated",
    )
    add(
        "--adasum",
        action="store_true",
        help="combine gradients by Adasum (arXiv 2006.02924) instead of their mean; the learning rate is not "
        "multiplied by the number of ranks",
    )
    add("--lr_schedule", choices=list(SCHEDULES), default="cosine", help="after the warm-up")
    add(
        "--lr_scaling",
        choices=list(SCALINGS),
        default="linear",
        help="what the learning rate is multiplied by: the number of ranks, its square root, or 1",
    )
    add(
        "--hard_mining_threshold",
        type=fraction,
        default=0.95,
        help="mIoU from which on a patch is easy",
    )
    add("--hard_mining_tries", type=positive_int, default=3, help="most rounds of new draws for a batch")
    add("--optimizer", choices=list(OPTIMIZERS), default="adam", help="sgd has a momentum of 0.9")
    usual = ", ".join(f"{name} {decay:g}" for name, decay in OPTIMIZERS.items() if decay)
    add(
        "--weight_decay",
        type=non_negative_float,
        help=f"decoupled, of kernels only, times the learning rate (none: {usual}, others 0)",
    )
    add(
        "--clip_norm",
        type=non_negative_float,
        default=1.0,
        help="longest gradient, of all weights after the reduction, 0: any",
    )
    add(
        "--ema",
        type=fraction,
        default=0.0,
        help="decay of a moving average of the weights that is validated and exported, such as 0.999; 0: none",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add(
        "--early_stopping",
        type=non_negative_int,
        default=0,
        help="end after X validations in a row without a better mIoU, 0: never",
    )
    add(
        "--time_limit",
        type=hours_minutes,
        metavar="HH:MM",
        help="stop with a checkpoint and exit code 75 before this time is over, since the start (none: no limit)",
    )
    add(
        "--histograms",
        action="store_true",
        help="histograms of the weights in TensorBoard, at each validation",
    )
    add(
        "--profile",
        type=step_range,
        metavar="START:STOP",
        help="steps to profile for TensorBoard's profiler (none: no step)",
    )
    add(
        "--checkpoint_every",
        type=positive_int,
        help="write a checkpoint every X steps (none: at each validation)",
    )
    add(
        "--keep_checkpoints",
        type=positive_int,
        default=2,
        help="newest checkpoints to keep, besides the best",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --log_dir, which also happens without it; begin if there is none",
    )
    add("--resume_force", action="store_true", help="go on although the options are other ones")
    add(
        "--deterministic",
        action="store_true",
        help="the same bits each time on the same number of threads, slower",
    )
    add(
        "--memory_report",
        action="store_true",
        help="first measure the main memory that a step takes, say what fits, and end if this does not",
    )
    add("--verbose", action="store_true", help="show TensorFlow's own messages")


def given_options(argv: list[str] | None = None) -> set[str]:
    """The names of the options that were typed, as against those that have their default."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as that goes without TensorFlow or the slides.

    SURF works at level 0 unless a resolution was given: then `resolution` is None.
    Ends with exit code 2 for what is wrong.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    given = given_options(argv)
    if options.data_sampler == "surf" and "resolution" not in given:
        options.resolution = None
    try:
        LabelMap.parse(options.label_map)
    except ValueError as error:
        parser.error(f"--label_map: {error}")
    if options.dataset is not None and options.data_root is None:
        options.data_root = Path(os.environ["CAMELYON_ROOT"]) if "CAMELYON_ROOT" in os.environ else None
        if options.data_root is None and options.slide_path is None:
            parser.error("--dataset wants its folder: --data_root, or CAMELYON_ROOT in the environment")
    elif options.dataset is None and options.data_root is not None:
        parser.error("--data_root goes with --dataset 16 or 17")
    if options.slide_path is None and options.dataset is None:
        parser.error("--slide_path is missing, the folder of the training slides (or --dataset, --data_root)")
    if options.slide_path is None and options.label_path is not None:
        parser.error("--label_path goes with --slide_path")
    if (options.valid_slide_path is None) != (options.valid_label_path is None):
        parser.error("--valid_slide_path and --valid_label_path go together")
    for name in ("data_root", "slide_path", "label_path", "valid_slide_path", "valid_label_path"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name}: there is no {path}")
    if options.valid_slide_path is None and not 0 < options.val_split < 1:
        parser.error(f"--val_split {options.val_split} leaves no slides for training or for validation")
    if options.weights_path is not None:
        _choose_model(options, "model" in given, parser)
    multiple = multiple_of(options.model)  # after --weights_path has chosen it
    if options.img_size % multiple:
        nearest = max(multiple, round(options.img_size / multiple) * multiple)
        parser.error(
            f"--img_size {options.img_size} is no multiple of {multiple}, which {options.model} needs: "
            f"take {nearest}"
        )
    if not options.augment and "stain_jitter" in given:
        parser.error("--stain_jitter does not go with --no-augment")
    if options.loss == "dice" and options.pos_pixel_weight != options.neg_pixel_weight:
        parser.error("--loss dice takes no --pos_pixel_weight and --neg_pixel_weight")
    if options.optimizer == "adam" and options.weight_decay:
        parser.error("--weight_decay does not go with --optimizer adam, take adamw")
    for name in ("hard_mining_threshold", "hard_mining_tries"):
        if name in given and not options.hard_mining:
            parser.error(f"--{name} goes with --hard_mining")
    if options.memory_report and not options.no_cuda and NVIDIA.exists():
        parser.error("--memory_report measures main memory: it goes with --no_cuda where there are GPUs")
    if options.ema == 1:
        parser.error("--ema 1 would never learn anything")
    if options.adasum and options.accumulate_steps > 1:
        parser.error("--adasum does not go with --accumulate_steps")
    if options.accumulate_steps > 1 and options.mixed_precision == "float16":
        # Its loss scale would be lowered on the one rank whose batch overflows, before the reduction.
        parser.error("--accumulate_steps does not go with --mixed_precision float16, take bfloat16")
    if options.accumulate_steps > 1 and not options.horovod:
        parser.error("--accumulate_steps is Horovod's: take off --no-horovod")
    if options.debug:
        options.planned_steps = options.num_steps
        options.planned_validation_patches = options.validation_patches
        options.num_steps = min(options.num_steps, DEBUG_IMAGES)
        options.validation_patches = min(options.validation_patches, DEBUG_IMAGES)
    if options.warmup_steps < 0:
        options.warmup_steps = options.num_steps // 20
    if options.pos_pixel_weight == options.neg_pixel_weight == 0:
        parser.error("--pos_pixel_weight and --neg_pixel_weight are both 0: nothing to learn")
    return options


def _choose_model(options: argparse.Namespace, model_given: bool, parser: argparse.ArgumentParser) -> None:
    """The model that the weights are of, where none was asked for; an error where another one was."""
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


def option_values(options: argparse.Namespace) -> dict[str, Any]:
    """The resolved options as options.json holds them: paths absolute, in the order of their names."""
    return {
        name: os.path.abspath(v) if isinstance(v, Path) else v
        for name, v in sorted(vars(options).items())
        if not name.startswith("planned_")  # what --debug has cut: not options
    }
