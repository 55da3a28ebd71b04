"""Finds the training and validation slides of the options, checks them on all ranks, and splits them once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from samplers import SamplerConfig
from samplers.labels.label_map import LabelMap, swapped_classes
from samplers.pairs.camelyon import Found, camelyon16, camelyon17, itc_slides, of_centers
from samplers.pairs.checks import Checked, LabelFacts
from samplers.pairs.folds import fold_pairs
from samplers.pairs.known import known_of
from samplers.pairs.names import name_some, patient_of, patient_pattern, slide_of_patch
from samplers.pairs.pairing import SlidePair, check_pairs, find_pairs
from samplers.pairs.partly_annotated import PARTLY_16, UNFIT_16, mark_partly_annotated, read_names, without
from samplers.pairs.split import split_pairs
from training.resume import read_splits
from utils.cli import UserError
from utils.failures import write_failures_to
from utils.ranks.launcher import launcher_rank
from utils.ranks.patch_group import PatchGroup

if TYPE_CHECKING:
    from utils.ranks.world import World


class Slides(NamedTuple):
    """The slides of a run, which are the same on every rank."""

    train: list[SlidePair]
    val: list[SlidePair]
    label_map: LabelMap
    facts: dict[SlidePair, LabelFacts]


def prepare_slides(options: argparse.Namespace, world: World, resumed: Path | None = None) -> Slides:
    """Collective: find the slides, check them and divide them into training and validation.

    `resumed` is the log_dir of the run that goes on, whose split is taken. UserError on every rank that names every bad
    file; with `--skip_bad_slides` it is a warning.
    """
    write_failures_to(options.log_dir or Path("logs"))
    label_map = LabelMap.parse(options.label_map, options.unannotated)
    # One rank lists the folders: hundreds of ranks at once are a load for a shared file system.
    train, val = world.on_rank_0(lambda: _find(options))
    apart = bool(val)  # else they are split off
    good = _check(options, [*train, *val], label_map, world)
    train, val = ([pair for pair in pairs if pair in good] for pairs in (train, val))
    train, val = world.all_or_none(lambda: _split(options, train, val, resumed, apart))
    return Slides(train, val, label_map, good)


def _find(options: argparse.Namespace) -> tuple[list[SlidePair], list[SlidePair]]:
    """Return training and validation pairs; the latter are empty if they are split off later."""
    swapped = swapped_classes(LabelMap.parse(options.label_map))
    if swapped is not None:
        _say(f"warning: {swapped}")
    train: Found = ([], [])
    val: Found = ([], [])
    formats = options.slide_format, options.label_format, options.unlabelled
    if options.dataset == "16" and options.slide_path is None:
        train, val = camelyon16(options.data_root, *formats)
    elif options.dataset == "17" and options.slide_path is None:
        train = camelyon17(options.data_root, *formats)
    else:
        train = find_pairs(options.slide_path, options.label_path, *formats)
    if options.valid_slide_path is not None:
        formats = options.valid_slide_format, options.valid_label_format, options.unlabelled
        val = find_pairs(options.valid_slide_path, options.valid_label_path, *formats)
    for warning in (*train[1], *val[1]):
        sys.stderr.write(f"warning: {warning}\n")
    if options.folds is not None:  # a test set is not for choosing anything
        return _known_faults(options, train[0], [])
    return _of_centers(options, *_known_faults(options, train[0], val[0]))


def _known_faults(
    options: argparse.Namespace, train: list[SlidePair], val: list[SlidePair]
) -> tuple[list[SlidePair], list[SlidePair]]:
    """Mark the slides that are annotated in part, and leave out unfit ones; each is said in one line."""
    if options.dataset == "16" and options.slide_path is None and not options.all_annotations:
        train = mark_partly_annotated(train, PARTLY_16)
        fit = without(val, UNFIT_16)
        left_out = [pair.name for pair in val if pair not in set(fit)]
        if left_out:
            _say(
                f"left out of validation, as incomplete or a duplicate: {name_some(left_out)} "
                "(--all_annotations takes them)"
            )
        val = fit
    if options.dataset == "17" and options.slide_path is None and not options.all_annotations:
        train = mark_partly_annotated(train, itc_slides(options.data_root))
    if options.partly_annotated is not None:
        names = read_names(options.partly_annotated, [*train, *val])
        train, val = mark_partly_annotated(train, names), mark_partly_annotated(val, names)
    partly = [pair.name for pair in (*train, *val) if pair.partly_annotated]
    if partly:
        _say(
            f"{len(partly)} slides are annotated in part, what is not annotated on them is ignored: "
            f"{name_some(partly)}"
            + (" (--all_annotations takes it as background)" if options.partly_annotated is None else "")
        )
    return train, val


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _of_centers(
    options: argparse.Namespace, train: list[SlidePair], val: list[SlidePair]
) -> tuple[list[SlidePair], list[SlidePair]]:
    """Keep the slides of --train_centers and --val_centers; -1 on one side means all that the other does not name."""
    first, second = (
        None if -1 in centers else set(centers) for centers in (options.train_centers, options.val_centers)
    )
    if not val and first is not None and first == second:
        return of_centers(train, first), []  # divided by --val_split
    if not val and (first or second):
        train, val = _side(train, first, second), _side(train, second, first)
    else:
        train, val = _side(train, first, None), _side(val, second, None)
    if not train or ((first or second) and not val):
        centers = options.val_centers if train else options.train_centers
        raise UserError(f"no slides are left by --{'val' if train else 'train'}_centers {centers}")
    return train, val


def _side(pairs: list[SlidePair], mine: set[int] | None, others: set[int] | None) -> list[SlidePair]:
    """Return the pairs of the centres in `mine`; None means all centres but those in `others`."""
    if mine is not None:
        return of_centers(pairs, mine)
    left_out = set(of_centers(pairs, others)) if others is not None else set()
    return [pair for pair in pairs if pair not in left_out]


def _check(
    options: argparse.Namespace, pairs: list[SlidePair], label_map: LabelMap, world: World
) -> dict[SlidePair, LabelFacts]:
    """Collective: return the good ones of `pairs` and what their labels hold; each rank opens its share of those
    that no earlier run has found good."""
    threads = max(1, min(16, 2 * len(os.sched_getaffinity(0))))

    def check(mine: Sequence[SlidePair]) -> dict[SlidePair, Checked]:
        return check_pairs(
            mine, label_map, options.img_size, options.resolution, threads, progress="checking slides"
        )

    matters = [options.img_size, options.resolution, astuple(label_map)]
    found = known_of(
        "check",
        matters,
        pairs,
        world,
        check,
        Checked.to_json,
        lambda _, value: Checked.from_json(value).say(),
    )
    bad = {pair: result.reasons for pair, result in found.items() if result.reasons}
    if bad:
        lines = [f"  {pair.slide}: {'; '.join(bad[pair])}" for pair in pairs if pair in bad]
        message = f"{len(bad)} of {len(pairs)} slides cannot be used:\n" + "\n".join(lines)
        if not options.skip_bad_slides:
            raise UserError(f"{message}\nrepair them, or go on without them with --skip_bad_slides")
        if world.is_first:
            sys.stderr.write(f"warning: left out, {message}\n")
    good = {pair: found[pair].facts for pair in pairs if pair not in bad}
    if world.is_first:
        _warn_of_slow_masks([pair.label for pair in good if pair.label and good[pair].areas is None])
    return good


def _warn_of_slow_masks(masks: list[Path]) -> None:
    """Say which masks have no small level with the values of level 0, and how to make it."""
    if masks:
        levels = "tile=True, pyramid=True, region_shrink='nearest', compression='deflate', bigtiff=True"
        sys.stderr.write(
            f"warning: {len(masks)} masks have no small level that could be used (no pyramid, or averages), so each is "
            "read as a whole, once, which takes one or two seconds per gigapixel: "
            f'{name_some(masks)}. This makes the levels: {sys.executable} -c "import pyvips; '
            f"pyvips.Image.new_from_file('MASK').tiffsave('NEW_MASK', {levels})\"\n"
        )


def _split(
    options: argparse.Namespace,
    train: list[SlidePair],
    val: list[SlidePair],
    resumed: Path | None,
    apart: bool,
) -> tuple[list[SlidePair], list[SlidePair]]:
    pattern = options.patient_pattern and patient_pattern(options.patient_pattern)
    if resumed is not None:
        train, val = _split_as_before(resumed, [*train, *val])
    elif options.folds is not None:
        train, val = fold_pairs(train, options.folds, options.fold, options.seed, options.folds_by, pattern)
    elif not apart:
        train, val = split_pairs(train, options.val_split, options.seed, pattern)
    both = {pair.slide.resolve() for pair in train} & {pair.slide.resolve() for pair in val}
    if both:
        raise UserError(f"{len(both)} slides are in training and validation, {min(both)} first")
    patients = _patients(train, pattern) & _patients(val, pattern)
    if patients:
        raise UserError(
            f"{len(patients)} patients are in training and validation: {name_some(sorted(patients))}"
        )
    shared = _shared_slides(train, val)
    if shared:
        raise UserError(
            f"{len(shared)} slides have patches in training and in validation: {name_some(shared)}"
        )
    unknown = [pair for pair in (*train, *val) if pattern and patient_of(pair.name, pattern) is None]
    if unknown and launcher_rank()[0] == 0:
        sys.stderr.write(
            f"warning: {len(unknown)} of {len(train) + len(val)} slides do not match --patient_pattern, so each is a "
            f"patient of its own: {name_some(pair.name for pair in unknown)}\n"
        )
    for name, pairs in (("training", train), ("validation", val)):
        if not pairs:
            raise UserError(f"no {name} slides are left")
    return train, val


def _patients(pairs: list[SlidePair], pattern: re.Pattern[str] | None) -> set[str]:
    return {patient for patient in (patient_of(pair.name, pattern) for pair in pairs) if patient is not None}


def _shared_slides(train: list[SlidePair], val: list[SlidePair]) -> list[str]:
    """Return the slides that one side has patches of, and the other side patches, or the whole slide."""
    patches = [
        {slide for slide in (slide_of_patch(pair.name) for pair in pairs) if slide} for pairs in (train, val)
    ]
    whole = [{pair.name for pair in pairs} for pairs in (train, val)]
    return sorted((patches[0] & (patches[1] | whole[1])) | (patches[1] & whole[0]))


def _split_as_before(log_dir: Path, pairs: list[SlidePair]) -> tuple[list[SlidePair], list[SlidePair]]:
    """Return the slides of the run's splits.json. New ones are left out, so that the patches stay the same."""
    found = {str(pair.slide.absolute()): pair for pair in pairs}
    parts = []
    for name, slides in read_splits(log_dir).items():
        missing = [slide for slide in slides if slide not in found]
        if missing:
            raise UserError(
                f"the run in {log_dir} has {len(missing)} {name} slides that are not there or not good any more, "
                f"{missing[0]} first: bring them back, or begin with another --log_dir"
            )
        parts.append([found.pop(slide) for slide in slides])
    if found:
        sys.stderr.write(f"warning: {len(found)} slides are new since the run began and left out\n")
    return parts[0], parts[1]


def split_values(train: list[SlidePair], val: list[SlidePair]) -> dict[str, list[dict[str, Any]]]:
    """Return the content of splits.json."""
    return {name: [_split_row(p) for p in pairs] for name, pairs in (("train", train), ("val", val))}


def _split_row(pair: SlidePair) -> dict[str, Any]:
    label = None if pair.label is None else str(pair.label.absolute())
    row: dict[str, Any] = {"slide": str(pair.slide.absolute()), "label": label}
    return {**row, "partly_annotated": True} if pair.partly_annotated else row


def sampler_config(
    options: argparse.Namespace, label_map: LabelMap, group: PatchGroup | None = None
) -> SamplerConfig:
    """Return the configuration of this rank's samplers. `group`: the ranks that share its patches, None: none do."""
    return SamplerConfig(
        sampler=options.data_sampler,
        img_size=options.img_size,
        batch_size=options.batch_size,
        batch_tumor_ratio=options.batch_tumor_ratio,
        bb_downsample=options.bb_downsample,
        resolution=options.resolution,
        label_map=label_map,
        min_known=options.min_known,
        seed=options.seed,
        augment=options.augment,
        stain_jitter=options.stain_jitter,
        annotation_weighting=options.annotation_weighting,
        max_bad_slides=options.max_bad_slides,
        max_validation_patches=options.validation_patches,
        strip=None if group is None or group.size == 1 else group.strip(options.img_size),
    )
