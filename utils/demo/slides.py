"""Makes synthetic slides, and a set of them in the layout of CAMELYON16, for `python -m utils.demo_slides`.

A slide is a pyramidal, tiled JPEG TIFF of 0.25 µm/px. Its label is an ASAP XML and, for CAMELYON16, also a pyramidal
mask (0/255) drawn from the same polygons. The same seed gives the same bytes. The program can be stopped at any moment
and run again: a file gets its name when it is complete, and complete files are kept.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import shapely
from tqdm import tqdm

from utils.cli import UserError
from utils.demo.tissue import Layout, Stain, make_layout, paint, tumour_mask
from utils.files import output_errors, write_atomically

SPACING = 0.25  # µm/px
MIN_SIZE = 512
_VERSION = 2  # to be incremented when the same seed gives other pictures


class DemoError(UserError):
    """A request that cannot be met, such as a size that is too small or a folder that holds something else."""


@dataclass(frozen=True)
class SlideJob:
    """A slide to be made, and the paths of its files; None means that it has no such label."""

    slide: Path
    mask: Path | None
    xml: Path | None
    lesions: int
    groups: tuple[str, str]  # groups of the lesions and of the exclusions in the XML
    stain: Stain
    size: int
    seed: tuple[int, ...]
    longest: tuple[float, float] | None = None  # of `make_layout`

    @property
    def done(self) -> bool:
        return self.slide.exists()  # the slide is renamed last


def make_demo(
    root: str | os.PathLike[str],
    train: int = 6,
    val: int = 2,
    size: int = 4096,
    seed: int = 0,
    processes: int = 1,
) -> Path:
    """Make CAMELYON16-like slides of size × size pixels, each with 2 to 4 lesions. Return `root`.

    The files are <root>/training/{slides/tumor_001.tif, masks/tumor_001_mask.tif, xml/tumor_001.xml, …} and the same in
    validation/ (test_001 …). Nothing is done if this set is there already. Raises DemoError if something else is there.
    """
    root = Path(root)
    jobs = []
    for part, name, count in (("training", "tumor", train), ("validation", "test", val)):
        for number in range(1, count + 1):
            stem, folder = f"{name}_{number:03d}", root / part
            jobs.append(
                SlideJob(
                    slide=folder / "slides" / f"{stem}.tif",
                    mask=folder / "masks" / f"{stem}_mask.tif",
                    xml=folder / "xml" / f"{stem}.xml",
                    lesions=2 + number % 3,
                    groups=("_0" if number % 2 else "Tumor", "_2"),
                    stain=Stain(0.9 + 0.05 * (number % 5), 0.9 + 0.07 * (number % 4)),
                    size=size,
                    seed=(seed, part == "validation", number),
                )
            )
    return make_slides(
        root,
        jobs,
        {"layout": "camelyon16", "train": train, "val": val, "size": size, "seed": seed},
        processes,
    )


def make_slides(root: Path, jobs: Sequence[SlideJob], what: dict[str, Any], processes: int) -> Path:
    """Make the slides that are missing, and write to demo.json which set this is."""
    if what["size"] < MIN_SIZE:
        raise DemoError(f"size is {what['size']} pixels, it must be at least {MIN_SIZE}")
    what = {"version": _VERSION, **what}
    with output_errors(root):  # an image's folders are read-only
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    with _locked(root / ".lock"):
        note = root / "demo.json"
        _prepare(root, note, what, jobs)
        pending = [job for job in jobs if not job.done]
        if not pending:
            return root
        shown = partial(tqdm, desc=f"demo slides in {root}", total=len(pending), unit="slide", disable=None)
        if processes <= 1:
            for job in shown(pending):
                make_slide(job)
            return root
        # Spawned, not forked, because libvips and OpenCV have threads.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(pending)), spawn) as pool:
            for _ in shown(pool.map(make_slide, pending)):
                pass
    return root


@contextmanager
def _locked(path: Path) -> Any:
    """Lock the folder: of two runs at once, the second waits for the first and then finds its work done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(root: Path, note: Path, what: dict[str, Any], jobs: Sequence[SlideJob]) -> None:
    """Write which set is made here, and delete slides that an earlier version of this program has made.

    Raises DemoError if the folder holds another set or something else.
    """
    if note.exists():
        found = json.loads(note.read_text())
        if {**found, "version": _VERSION} != what:
            raise DemoError(
                f"{root}: holds other demo slides ({found}, not {what}); remove it or choose another folder"
            )
        if found != what:
            for job in jobs:
                job.slide.unlink(missing_ok=True)
    elif any(path.name[0] != "." for path in root.iterdir()):
        raise DemoError(f"{root}: holds something other than demo slides; choose another folder")
    write_atomically(note, lambda path: path.write_text(json.dumps(what) + "\n"))


def make_slide(job: SlideJob) -> None:
    """Draw a slide and write its files, the slide last."""
    rng = np.random.default_rng(job.seed)
    layout = make_layout(rng, job.size, job.lesions, job.longest)
    tumour = tumour_mask(layout, job.size)
    pixels = paint(rng, layout, tumour, job.stain)
    for path in (job.slide, job.mask, job.xml):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if job.xml is not None:
        write_atomically(job.xml, partial(write_asap, layout=layout, groups=job.groups))
    if job.mask is not None:
        # Levels have the most frequent value of each four pixels: an average would be neither 0 nor 255.
        mask = tumour.astype(np.uint8) * 255
        write_atomically(
            job.mask, partial(write_tiff, pixels=mask, compression="deflate", region_shrink="mode")
        )
    write_atomically(
        job.slide, partial(write_tiff, pixels=pixels, compression="jpeg", Q=85, region_shrink="mean")
    )


def write_tiff(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write uint8 pixels, (h, w) or (h, w, 3), as a tiled, pyramidal TIFF of 0.25 µm/px."""
    per_mm = 1000 / SPACING  # pixels per millimetre, the unit of libvips
    image = pyvips.Image.new_from_array(pixels).copy(xres=per_mm, yres=per_mm)
    image.tiffsave(
        str(path), tile=True, tile_width=512, tile_height=512, pyramid=True, resunit="cm", **options
    )


def write_asap(path: Path, layout: Layout, groups: tuple[str, str]) -> None:
    """Write annotations as ASAP does: one polygon for each lesion and exclusion, in level-0 pixels."""
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    shapes = [(p, groups[0], "#F4FA58") for p in layout.lesions] + [
        (p, groups[1], "#64FE2E") for p in layout.exclusions
    ]
    for number, (polygon, group, color) in enumerate(shapes):
        names = {"Name": f"Annotation {number}", "Type": "Polygon", "PartOfGroup": group, "Color": color}
        coordinates = ET.SubElement(ET.SubElement(annotations, "Annotation", names), "Coordinates")
        for order, (x, y) in enumerate(shapely.get_coordinates(polygon)[:-1]):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.4f}", Y=f"{y:.4f}")
    parents = ET.SubElement(root, "AnnotationGroups")
    for group, color in zip(groups, ("#F4FA58", "#64FE2E")):
        ET.SubElement(
            ET.SubElement(parents, "Group", Name=group, PartOfGroup="None", Color=color), "Attributes"
        )
    ET.indent(root, "\t")
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
