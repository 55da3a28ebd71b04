"""Says which options of train.py fit into the memory of a cluster, and how fast they would be: a projection.

    python -m utils.plan --nodes 4 --ranks_per_node 2 --memory 24 --img_size 8192 --model effdetd0

It measures small steps on this machine, which takes some minutes: run it on a node of the cluster, on the cores of one
rank. Which of --ranks_per_patch, --recompute, --fpn_min_level and --mixed_precision are not given are chosen.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.catalog import RECOMPUTE, EfficientDetRow, lookup
from training.memory import GB
from training.option_checks import problems
from training.options import build_parser as train_parser
from training.options import given_options
from utils.cli import (
    EXIT_DONE,
    HelpFormatter,
    Parser,
    UserError,
    positive_float,
    positive_int,
    report_user_error,
)
from utils.ranks.network import Network, add_network_options
from utils.ranks.patch_group import PatchGroup
from utils.startup import configure_environment, import_tensorflow

if TYPE_CHECKING:
    from training.projection import Choices, Cluster, Combination

PROGRAM = "python -m utils.plan"
ROWS = 12  # of the table


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description="Say which options of train.py fit into the memory of a cluster, and how fast they would be, from "
        "small steps that are measured here. All options of train.py go with it: those that are given are taken as "
        "they are, and of --ranks_per_patch, --recompute and --fpn_min_level (3, or train.py's default) the others "
        "are tried. --batch_size is 1 unless it is given.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nodes", type=positive_int, default=1, help="number of nodes")
    add("--ranks_per_node", type=positive_int, default=1, help="ranks on each node, one per GPU or socket")
    add(
        "--memory",
        type=positive_float,
        required=True,
        help="GB of memory that each node has for training, which its ranks share (of all its GPUs, where they are "
        "used)",
    )
    add_network_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    try:
        asked, words = build_parser().parse_known_args(argv)
        options = train_parser().parse_args(["--batch_size", "1", *words])
        given = given_options(words)
        for problem in problems(options, given):
            raise UserError(problem)
        print(plan(asked, options, given, words))
    except UserError as error:
        return report_user_error(error, PROGRAM)
    return EXIT_DONE


def plan(
    asked: argparse.Namespace, options: argparse.Namespace, given: set[str], words: Sequence[str]
) -> str:
    """Return the table and the command. `words` are the options of train.py as they were typed."""
    configure_environment(options)
    import_tensorflow(options.verbose)
    from training.precision import settle_precision
    from training.projection import Cluster, Projection
    from utils.ranks.devices import select_devices
    from utils.ranks.world import World

    on_gpu = bool(select_devices(World(), options.no_cuda))
    settle_precision(options, on_gpu, World())
    cluster = Cluster(asked.nodes, asked.ranks_per_node, asked.memory, Network.of(asked))
    tried = choices(options, given, cluster.ranks)
    projection = Projection(options, cluster, lambda text: print(text, file=sys.stderr, flush=True), on_gpu)
    found = projection.fitting(tried)
    if not found:
        raise UserError(what_would_fit(projection.fewest_ranks(tried), options, cluster))
    return f"{table(found, options, cluster)}\n\n{command(found[0], cluster, given, words)}"


def choices(options: argparse.Namespace, given: set[str], ranks: int) -> Choices:
    """Return what is tried: a value that is given, else all that there are. UserError if it does not fit the ranks."""
    from training.projection import Choices

    PatchGroup.of(0, ranks, options.ranks_per_patch)
    levels, level = isinstance(lookup(options.model), EfficientDetRow), options.fpn_min_level
    sharing = [n for n in range(1, min(ranks, options.img_size) + 1) if ranks % n == 0]
    if not options.horovod or options.adasum or options.sync_batch_norm:  # they do not go with more
        sharing = [1]
    return Choices(
        [options.recompute] if "recompute" in given else RECOMPUTE,
        [level] if "fpn_min_level" in given or not levels else sorted({level, 3}),
        [options.ranks_per_patch] if "ranks_per_patch" in given else sharing,
    )


def table(found: Sequence[Combination], options: argparse.Namespace, cluster: Cluster) -> str:
    """Return the combinations as lines, and what they are made of."""
    network, cores = cluster.network, len(os.sched_getaffinity(0))
    head = (
        f"A projection, not a measurement, for {_of(cluster)}:\n"
        f"{options.model}, patches of {options.img_size}², --batch_size {options.batch_size}, "
        f"{options.mixed_precision}. Memory and computation in proportion to small steps that\nwere measured here "
        f"({cores} cores), exchanges and allreduce at {network.gigabit:g} Gbit/s and {network.latency:g} µs.\n"
    )
    names = "--ranks_per_patch", "--recompute", "--fpn_min_level", "GB per rank", "s per step", "images/s"
    rows = [names, *(_row(combination) for combination in found[:ROWS])]
    if not isinstance(lookup(options.model), EfficientDetRow):
        rows = [row[:2] + row[3:] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    more = [f"and {len(found) - ROWS} slower ones"] if len(found) > ROWS else []
    return "\n".join([head, *lines, *more])


def _row(found: Combination) -> tuple[str, ...]:
    options = found.options
    return (
        *(str(options.ranks_per_patch), options.recompute, str(options.fpn_min_level)),
        *(f"{found.memory / GB:.1f}", f"{found.seconds:.3g}", f"{found.images_per_second:.3g}"),
    )


def _of(cluster: Cluster) -> str:
    return (
        f"{cluster.ranks} ranks ({cluster.nodes} nodes with {cluster.ranks_per_node}) "
        f"of {cluster.memory / cluster.ranks_per_node:.1f} GB each"
    )


def command(best: Combination, cluster: Cluster, given: set[str], words: Sequence[str]) -> str:
    """Return the command line that starts training with a combination."""
    options = best.options
    names = ["batch_size", "ranks_per_patch", "recompute", "mixed_precision"]
    if isinstance(lookup(options.model), EfficientDetRow):
        names.append("fpn_min_level")
    chosen = [f"--{name} {getattr(options, name)}" for name in names if name not in given]
    slides = [] if {"slide_path", "dataset"} & given else ["--slide_path SLIDES --label_path LABELS"]
    line = " ".join([shlex.join(words), *chosen, *slides]).strip()
    nodes, per_node = cluster.nodes, cluster.ranks_per_node
    if nodes == 1:
        return f"The fastest:\n  NP={cluster.ranks} sh run_train.sh {line}"
    return (
        f"The fastest, under Slurm, or without it:\n"
        f"  sbatch -N {nodes} --ntasks-per-node={per_node} run_train.sh {line}\n"
        f"  mpirun -np {cluster.ranks} -map-by ppr:{per_node}:node -x LD_LIBRARY_PATH -x PATH python -u train.py {line}"
    )


def what_would_fit(best: Combination | None, options: argparse.Namespace, cluster: Cluster) -> str:
    """Return why nothing fits, and the number of ranks per patch and of nodes with which something would."""
    text = f"nothing fits, for {_of(cluster)} (a projection from small steps that were measured here). "
    if best is None:
        return f"{text}Nor would more ranks per patch help: give each rank more memory, by fewer --ranks_per_node"
    chosen = best.options
    levels = isinstance(lookup(options.model), EfficientDetRow)
    level = f" --fpn_min_level {chosen.fpn_min_level}" if levels else ""
    nodes = chosen.ranks_per_patch // math.gcd(chosen.ranks_per_patch, cluster.ranks_per_node)
    batch = ", or fewer with --batch_size 1" if options.batch_size > 1 else ""
    return (
        f"{text}--ranks_per_patch {chosen.ranks_per_patch} --recompute {chosen.recompute}{level} would: "
        f"{best.memory / GB:.1f} GB per rank, on {nodes} nodes with {cluster.ranks_per_node} ranks, or a multiple of "
        f"that{batch}"
    )


if __name__ == "__main__":
    sys.exit(main())
