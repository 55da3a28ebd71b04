"""Projects memory and time of a training step on many ranks from small steps that are measured here.

A step of a rank is its computation, in proportion to its pixels, then the exchanges of rows and the allreduce of the
gradients, as `utils/ranks/network.py` has them.
"""

from __future__ import annotations

import argparse
import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import tf_keras as keras

from models.catalog import EfficientDetRow, lookup
from models.from_options import network_from_options, set_precision
from models.shapes import Shape, largest_output, output_shapes
from models.spatial.traffic import Sent, sent_forward, sent_in_step
from training.memory import GB, OF_RANKS, RESERVE, Line, workers_bytes
from training.tensor_size import LIMIT
from utils.ranks.network import Network

CLASSES = 2  # as in the steps that are measured
# Ranks that share a measured patch: the fewest, and an even number, of which some have neighbours on both sides.
SHARING = 4


@dataclass(frozen=True)
class Cluster:
    """`nodes` with `ranks_per_node` ranks each, which share the `memory` of their node, in GB."""

    nodes: int
    ranks_per_node: int
    memory: float
    network: Network

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def room(self) -> float:
        """Return the bytes that a step, as it is measured in a process alone, may take on a rank."""
        return self.memory * GB * (1 - RESERVE) / self.ranks_per_node - (OF_RANKS if self.ranks > 1 else 0)


@dataclass(frozen=True)
class Combination:
    """Options of train.py, and what a rank takes with them: bytes of memory, and seconds per step."""

    options: argparse.Namespace
    memory: float
    seconds: float = float("nan")
    images_per_second: float = float("nan")  # of all ranks together


@dataclass(frozen=True)
class Choices:
    """The values that are tried together."""

    recompute: Sequence[str]
    fpn_min_level: Sequence[int]
    ranks_per_patch: Sequence[int]


class Projection:
    """What training with `options` takes on a cluster."""

    def __init__(
        self,
        options: argparse.Namespace,
        cluster: Cluster,
        say: Callable[[str], None] = lambda text: None,
        on_gpu: bool = False,
    ) -> None:
        """`options.mixed_precision` is not "auto". `say` is told of each measurement before it is made.

        With `on_gpu` the memory is that of GPUs, of which sampler workers take nothing.
        """
        self._on_gpu = on_gpu
        self.options, self.cluster, self.say = options, cluster, say
        self._lines: dict[tuple[str, int, int], Line | None] = {}
        self._networks: dict[int, keras.Model] = {}
        self._sent: dict[tuple[int, int], Sent] = {}
        set_precision(options.mixed_precision)

    def fitting(self, choices: Choices) -> list[Combination]:
        """Return the combinations that fit, the fastest first."""
        fit = [(found, self._line(found.options)) for found in self._combinations(choices)]
        timed = [
            self._timed(found, line) for found, line in fit if line and found.memory <= self.cluster.room
        ]
        return sorted(timed, key=lambda found: -found.images_per_second)

    def fewest_ranks(self, choices: Choices) -> Combination | None:
        """Return the combination that fits with the fewest ranks per patch, however many there are; None if none does.

        A patch is not shared by more ranks than it has rows.
        """

        def least(ranks: int) -> Combination | None:
            tried = Choices(choices.recompute, choices.fpn_min_level, [ranks])
            best = min(self._combinations(tried), key=lambda found: found.memory, default=None)
            return best if best is not None and best.memory <= self.cluster.room else None

        numbers = range(1, self.options.img_size + 1)
        first = bisect.bisect_left(numbers, True, key=lambda ranks: least(ranks) is not None)
        return least(numbers[first]) if first < len(numbers) else None

    def _combinations(self, choices: Choices) -> Iterator[Combination]:
        """Yield all combinations whose tensors TensorFlow's kernels can count, with their memory."""
        # Most ranks first: what they take tells whether fewer are worth a measurement.
        for ranks in sorted(choices.ranks_per_patch, reverse=True):
            for level in choices.fpn_min_level:
                if largest_output(self._shapes(level), self.options.img_size, ranks)[1] > LIMIT:
                    continue
                for recompute in choices.recompute:
                    values = {"ranks_per_patch": ranks, "fpn_min_level": level, "recompute": recompute}
                    options = argparse.Namespace(**{**vars(self.options), **values})
                    line = self._line(options)
                    if line is not None:
                        workers = 0 if self._on_gpu else workers_bytes(options)
                        yield Combination(options, line.bytes_of(options) + _halos(line, options) + workers)

    def _line(self, options: argparse.Namespace) -> Line | None:
        """Return the memory of a rank that has whole patches or strips.

        None: more than there is here, or surely more than there is in the cluster.
        """
        ranks = 1 if options.ranks_per_patch == 1 else SHARING
        key = (options.recompute, options.fpn_min_level, ranks)
        if key not in self._lines:
            strips = self._lines.get((options.recompute, options.fpn_min_level, SHARING))
            # Without halos a step takes less, but never less than half: no need to measure that it does not fit.
            hopeless = strips is not None and strips.bytes_of(options) > 2 * self.cluster.room
            self._lines[key] = None if hopeless else self._measured(options, ranks)
        return self._lines[key]

    def _measured(self, options: argparse.Namespace, ranks: int) -> Line | None:
        part = "whole patches" if ranks == 1 else "strips of patches"
        levels = isinstance(lookup(options.model), EfficientDetRow)
        level = f", --fpn_min_level {options.fpn_min_level}" if levels else ""
        self.say(f"measuring small steps on {part}, --recompute {options.recompute}{level} ...")
        try:
            return Line.measured(options, steps=2, ranks_per_patch=ranks)
        except MemoryError as error:
            self.say(f"  {error}: left out")
            return None

    def _timed(self, found: Combination, line: Line) -> Combination:
        """Return a combination with its projected time."""
        options, cluster, ranks = found.options, self.cluster, found.options.ranks_per_patch
        sharing = 1 if ranks == 1 else SHARING
        pixels = options.img_size**2 / ranks
        seconds = line.larger["seconds"][-1] * pixels / (line.sides[1] ** 2 / sharing)
        if ranks > 1:
            sent, count = sent_in_step(self._forward(options), line.larger["exchanges"])
            seconds += cluster.network.exchanges(sent, count, ranks)
        reduced = line.larger["parameters"] * (2 if options.fp16_allreduce else 4)
        seconds += cluster.network.allreduce(reduced, cluster.ranks) / options.accumulate_steps
        images = options.batch_size * (cluster.ranks // ranks)
        return Combination(options, found.memory, seconds, images / seconds)

    def _network(self, level: int) -> keras.Model:
        if level not in self._networks:
            self._networks[level] = network_from_options(
                {**vars(self.options), "fpn_min_level": level}, CLASSES
            )
        return self._networks[level]

    def _forward(self, options: argparse.Namespace) -> Sent:
        key = options.fpn_min_level, options.ranks_per_patch
        if key not in self._sent:
            network, size = self._network(options.fpn_min_level), options.img_size
            self._sent[key] = sent_forward(network, size, options.batch_size, options.ranks_per_patch)
        return self._sent[key]

    def _shapes(self, level: int) -> dict[str, Shape]:
        options = self.options
        return output_shapes(
            self._network(level), (options.batch_size, options.img_size, options.img_size, 3)
        )


def _halos(line: Line, options: argparse.Namespace) -> float:
    """Return the bytes of the rows that a rank has of its neighbours: they grow with the width of the patch only."""
    if options.ranks_per_patch == 1:
        return 0.0
    forward = [sizes[0] for name, sizes in line.larger["exchanges"].items() if not name.endswith("_back")]
    return sum(forward) * options.img_size / line.sides[1]
