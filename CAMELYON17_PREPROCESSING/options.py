"""The options of the preprocessing, and their checks as far as that goes without the slides."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from CAMELYON17_PREPROCESSING.settings import LAYOUTS, PatchSettings
from CAMELYON17_PREPROCESSING.store import layout_of
from samplers.labels.label_map import LabelMap
from samplers.labels.options import add_label_options
from samplers.pairs.pairing import UNLABELLED
from utils.cli import HelpFormatter, Parser, UserError, fraction, positive_float, positive_int, random_seed

PROGRAM = "preprocess.py"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Cut the slides of CAMELYON16 or 17 into patches with masks.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument_group("options of the original suite").add_argument
    add("--patch_size", type=positive_int, default=1024, help="side of a patch in pixels")
    add("--num_threads", type=positive_int, default=4, help="number of worker processes per rank")
    add("--save_neg", action="store_true", help="also save patches without tumour")
    add("--save_png", action="store_true", help="save a picture of each slide's regions and patches")
    add("--proc_center", type=int, nargs="+", default=[-1], help="medical centres to process, -1 for all")
    add("--train_tumor_wsi_path", type=Path, help="folder of slides, instead of --root")
    add("--train_tumor_mask_path", type=Path, help="folder of the annotations (xml) or masks of these slides")
    add(
        "--save_positive_path",
        type=Path,
        help="folder for the patches with tumour (default: data/<dataset>_patches_…)",
    )
    add(
        "--save_tumor_negative_path",
        type=Path,
        help="folder for the patches without tumour (default: beside those with tumour)",
    )
    add("--format", default="tif", help="file ending of the slides; dcm and zarr are folders")
    add = parser.add_argument_group("ours").add_argument
    add("--root", type=Path, help="folder of CAMELYON16 or 17 in its public layout")
    add("--spacing", type=positive_float, help="spacing of the patches in µm/px (default: level 0)")
    add("--stride", type=positive_int, help="pixels from one patch to the next (default: --patch_size)")
    add("--min_tumor", type=fraction, default=0.01, help="smallest share of tumour in a positive patch")
    add("--min_tissue", type=fraction, default=0.5, help="smallest share of tissue in a negative patch")
    add_label_options(add)
    add(
        "--min_known",
        type=fraction,
        default=0.5,
        help="smallest share of a patch whose class is known, where the label map or --unannotated ignores pixels",
    )
    add(
        "--all_annotations",
        action="store_true",
        help="with --root, take the slides that are known to be annotated in part as they are",
    )
    add(
        "--unlabelled",
        choices=UNLABELLED,
        help="what to do with a slide without a label: leave it out with a warning, take it as free of tumour, or stop "
        "(default: error; with --root those are taken as free of tumour that the challenge says are)",
    )
    add(
        "--max_patches",
        type=positive_int,
        help="largest number of patches of each kind per slide, chosen at random",
    )
    add("--seed", type=random_seed, default=0, help="random seed of that choice")
    add(
        "--output_format",
        choices=["png", "jpg"],
        default="png",
        help="file format of the patches; masks are always png",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        help="a folder for the patches of each slide, or one folder for all, which is slow from some 100,000 files on "
        "(default: slide; a folder that holds patches keeps what it has)",
    )
    return parser


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options with their folders filled in, or exit with code 2 if one is wrong."""
    parser = build_parser()
    options = parser.parse_args(argv)
    given = _given(argv)
    if (options.root is None) == (options.train_tumor_wsi_path is None):
        parser.error("give either --root or --train_tumor_wsi_path, where the slides are")
    if options.train_tumor_mask_path is not None and options.train_tumor_wsi_path is None:
        parser.error("--train_tumor_mask_path goes with --train_tumor_wsi_path")
    for name in ("root", "train_tumor_wsi_path", "train_tumor_mask_path"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name}: there is no folder {path}")
    if options.all_annotations and options.root is None:
        parser.error("--all_annotations goes with --root")
    if options.max_patches is None and "seed" in given:
        parser.error("--seed goes with --max_patches")
    try:
        label_map = LabelMap.parse(options.label_map, options.unannotated)
    except UserError as error:
        parser.error(f"--label_map: {error}")
    if not options.save_neg:
        for name in given & {"save_tumor_negative_path", "min_tissue"}:
            parser.error(f"--{name} goes with --save_neg")
    if "min_known" in given and not label_map.ignores:
        parser.error("--min_known goes with --unannotated ignore, or GROUP:ignore in --label_map")
    data: Path = options.root or options.train_tumor_wsi_path
    base = Path("data") / f"{data.resolve().name}_patches_{options.patch_size}"
    options.save_positive_path = options.save_positive_path or base / "positive"
    options.save_tumor_negative_path = (
        options.save_tumor_negative_path or options.save_positive_path.parent / "negative"
    )
    return options


def _given(argv: list[str] | None) -> set[str]:
    """Return the names of the options that were typed."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def settings_of(options: argparse.Namespace) -> PatchSettings:
    """Return the options of the settings' names, with the layout of the folder where none is asked for."""
    values = {field.name: getattr(options, field.name) for field in fields(PatchSettings)}
    label_map = options.label_map and tuple(options.label_map)
    return PatchSettings(
        **{
            **values,
            "stride": options.stride or options.patch_size,
            "label_map": label_map or None,
            "layout": options.layout or layout_of(options.save_positive_path),
        }
    )
