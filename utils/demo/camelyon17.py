"""Makes synthetic slides of patients, in the layout of CAMELYON17, for `python -m utils.demo_slides`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils.demo.slides import SPACING, DemoError, SlideJob, make_slides
from utils.demo.tissue import Stain
from utils.files import write_atomically

_MAX_NODES = 5  # of a patient
_STAINS = (
    Stain(),
    Stain(0.7, 1.5),
    Stain(1.25, 0.75),
    Stain(0.8, 0.7),
    Stain(1.15, 1.4),
)  # one for each centre
# The nodes of a patient of each stage, as CAMELYON17 defines the stages.
NODES = {
    "pN0": ("negative",) * 5,
    "pN0(i+)": ("itc", "negative", "negative", "itc", "negative"),
    "pN1mi": ("itc", "micro", "negative", "micro", "negative"),
    "pN1": ("macro", "negative", "micro", "negative", "itc"),
    "pN2": ("micro", "macro", "micro", "micro", "negative"),
}
# From and to how many µm the largest lesion of a node is long. By the longest diameter a node is `macro` above 2 mm,
# `micro` above 0.2 mm, and `itc` (isolated tumour cells) below.
LONGEST_UM = {"itc": (120, 180), "micro": (350, 650), "macro": (2150, 2500)}
_MACRO_SIZE = 3  # a node with a macrometastasis is on a slide so many times as wide


def make_camelyon17_demo(
    root: str | os.PathLike[str],
    centers: int = 2,
    patients: int = 2,
    nodes: int = 2,
    size: int = 2048,
    seed: int = 0,
    processes: int = 1,
) -> Path:
    """Make CAMELYON17-like slides: for each centre, with its own stain, `patients` with `nodes` slides each.

    The files are <root>/training/center_N/patient_XXX_node_Y.tif with N = XXX // 20, and lesion_annotations/*.xml
    (groups metastases and normal) except for the last slide of each centre, which is tumour-free, as
    <root>/stage_labels.csv says. It calls all others macro, though no lesion is as large as that on so small a slide:
    `make_patients_demo` has true stages. Otherwise it is like `make_demo`.
    """
    root = Path(root)
    if not 1 <= centers <= 5 or not 1 <= patients <= 20 or not 1 <= nodes <= _MAX_NODES:
        raise DemoError(
            f"{centers} centres, {patients} patients, {nodes} nodes: from 1 to at most 5, 20 and 5"
        )
    jobs = []
    for center in range(centers):
        for number in range(patients * nodes):
            patient, node = 20 * center + number // nodes, number % nodes
            stem, normal = f"patient_{patient:03d}_node_{node}", number == patients * nodes - 1
            jobs.append(
                SlideJob(
                    slide=root / "training" / f"center_{center}" / f"{stem}.tif",
                    mask=None,
                    xml=None if normal else root / "training" / "lesion_annotations" / f"{stem}.xml",
                    lesions=0 if normal else 1 + number % 3,
                    groups=("metastases", "normal"),
                    stain=_STAINS[center],
                    size=size,
                    seed=(seed, 17, patient, node),
                )
            )
    what = {
        "layout": "camelyon17",
        "centers": centers,
        "patients": patients,
        "nodes": nodes,
        "size": size,
        "seed": seed,
    }
    made = make_slides(root, jobs, what, processes)
    rows = [f"{job.slide.name},{'macro' if job.lesions else 'negative'}\n" for job in jobs]
    text = "patient,stage\n" + "".join(rows)
    write_atomically(made / "stage_labels.csv", lambda path: path.write_text(text))
    return made


def make_patients_demo(
    root: str | os.PathLike[str],
    stages: Sequence[str] = tuple(NODES),
    size: int = 4096,
    seed: int = 0,
    processes: int = 1,
) -> Path:
    """Make a CAMELYON17-like patient of each stage (keys of NODES), with five nodes from negative to macro.

    Slides are size × size pixels, those with a macrometastasis three times as wide. The files are those of
    `make_camelyon17_demo`; there is an annotation for each slide with a lesion, and <root>/stage_labels.csv has the
    stages of patients and nodes. DemoError: the slides are too small for their lesions.
    """
    root = Path(root)
    jobs, rows = [], []
    for number, stage in enumerate(stages):
        rows.append(f"patient_{number:03d}.zip,{stage}\n")
        for node, label in enumerate(NODES[stage]):
            stem = f"patient_{number:03d}_node_{node}"
            rows.append(f"{stem}.tif,{label}\n")
            longest = LONGEST_UM.get(label)
            side = size * (_MACRO_SIZE if label == "macro" else 1)
            if longest and longest[1] / SPACING > 0.85 * side:
                raise DemoError(
                    f"size is {size} pixels, too small for the lesions of {stage}; 4096 is enough"
                )
            jobs.append(
                SlideJob(
                    slide=root / "training/center_0" / f"{stem}.tif",
                    mask=None,
                    xml=root / "training/lesion_annotations" / f"{stem}.xml" if longest else None,
                    lesions=1 + (number + node) % 3 if longest else 0,
                    groups=("metastases", "normal"),
                    stain=_STAINS[0],
                    size=side,
                    seed=(seed, 170, number, node),
                    longest=longest and (longest[0] / SPACING, longest[1] / SPACING),
                )
            )
    what = {"layout": "patients", "stages": [*stages], "size": size, "seed": seed}
    made = make_slides(root, jobs, what, processes)
    write_atomically(
        made / "stage_labels.csv", lambda path: path.write_text("patient,stage\n" + "".join(rows))
    )
    return made
