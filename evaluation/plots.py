"""Draws the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluation import froc
from evaluation.froc import SlideResult


def plot_froc(results: Sequence[SlideResult], summary: dict[str, Any], path: Path) -> None:
    """Draw both FROC curves, with the six points of each that the score averages."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for mode, color, style in (("corrected", "tab:orange", "-"), ("official", "black", "--")):
        false, found, _ = froc.curve(results, mode == "corrected")
        # The score uses the last sensitivity for higher rates as well.
        end = max(froc.RATES[-1], float(false[0]))
        label = f"{mode}: {summary[f'froc_{mode}']['score']:.4f}"
        axes.plot(np.append(end, false), np.append(found[0], found), style, color=color, label=label)
        axes.plot(froc.RATES, froc.sensitivities(false, found), "o", color=color, markersize=4)
    axes.set_xscale("symlog", base=2, linthresh=froc.RATES[0])
    axes.set_xticks([0, *froc.RATES], ["0", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlim=(0, 9), ylim=(-0.02, 1.02), xlabel="false positives per slide", ylabel="sensitivity")
    axes.set_title(f"{summary['lesions']} lesions on {summary['slides']} slides")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", title="FROC score")
    figure.savefig(path, dpi=120)
