"""Compares training from a few outlines, with all else ignored or taken as background, with training from all outlines.

    python benchmarks/sparse_labels.py --data ../shared/data/camelyon16_like --work /tmp/sparse

Some squares of each class are outlined on each slide: as much tumour as `--fraction` of the lesions' area, and as much
other tissue. The validation slides keep their masks. The last lines are one JSON object per case; the run's options
stand after `--`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import quoteattr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import shapely

from samplers.labels.label import LabelMap, open_label
from samplers.radboud import random_point
from samplers.reader import tissue_of
from samplers.slides.slide import Slide

SIDE = 200  # level-0 pixels of an outlined square
ROOT = Path(__file__).resolve().parent.parent
VALIDATION = ("tumor_005", "tumor_006", "normal_002")
OPTIONS = (
    "--data_sampler surf --img_size 256 --batch_size 2 --num_steps 2400 --learning_rate 2e-3 --batch_tumor_ratio 0.5 "
    "--freeze_bn 0.9 --fpn_min_level 3 --no_cuda --validate_every 1000000 --validation_patches 200"
)
CASES = {
    "all outlines": ("xml", "background"),
    "few, rest ignored": ("few", "ignore"),
    "few, rest background": ("few", "background"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with slides, masks and xml")
    parser.add_argument("--work", type=Path, required=True, help="folder for the outlines and the runs")
    parser.add_argument("--fraction", type=float, default=0.05, help="outlined part of the lesions' area")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("options", nargs="*", help="more options of train.py, after --")
    chosen = parser.parse_args()
    divide(chosen.data, chosen.work)
    for seed in chosen.seeds:
        for case in chosen.cases:
            labels, unannotated = CASES[case]
            if labels == "few":
                outline_few(chosen.work, chosen.fraction, seed)
            miou = train(chosen.work, labels, unannotated, seed, chosen.options)
            print(
                json.dumps({"case": case, "fraction": chosen.fraction, "seed": seed, "miou": miou}),
                flush=True,
            )


def divide(data: Path, work: Path) -> None:
    """Link the files for training and validation to folders of their own."""
    for kind in ("slides", "masks", "xml"):
        for file in sorted((data / kind).iterdir()):
            part = "val" if file.name.startswith(VALIDATION) else "train"
            link = work / part / kind / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(file.absolute())


def outline_few(work: Path, fraction: float, seed: int) -> None:
    """Write ASAP files with squares in the lesions and in the other tissue of the training slides."""
    folder = work / "train" / "few"
    folder.mkdir(exist_ok=True)
    for file in sorted((work / "train" / "xml").iterdir()):
        rng = np.random.default_rng((seed, *file.name.encode()))
        groups = few_outlines(work / "train" / "slides" / f"{file.stem}.tif", file, fraction, rng)
        (folder / file.name).write_text(asap(groups))


def few_outlines(
    slide_path: Path, label_path: Path, fraction: float, rng: np.random.Generator
) -> dict[str, list[shapely.Polygon]]:
    """Return the outlines of each group of a slide."""
    with Slide(slide_path) as slide:
        label = open_label(label_path, slide, LabelMap())
        lesion = shapely.union_all([a.polygon for a in label.annotations() if a.value])
        _, tissue, cell = tissue_of(slide, 7)
    rows, columns = np.nonzero(tissue)

    def in_tissue() -> tuple[float, float]:
        chosen = rng.integers(len(rows))
        return (columns[chosen] + rng.random()) * cell[0], (rows[chosen] + rng.random()) * cell[1]

    area = fraction * lesion.area
    return {
        "Tumor": squares(lambda: random_point(lesion, rng), lambda square: square.intersection(lesion), area),
        "normal": squares(in_tissue, lambda square: square.difference(lesion), area),
    }


def squares(
    point: Callable[[], tuple[float, float]], cut: Callable[[shapely.Polygon], shapely.Geometry], area: float
) -> list[shapely.Polygon]:
    """Return what `cut` leaves of squares around points, until they have this area together."""
    found: list[shapely.Polygon] = []
    while sum(part.area for part in found) < area:
        x, y = point()
        square = shapely.box(x - SIDE / 2, y - SIDE / 2, x + SIDE / 2, y + SIDE / 2)
        left = cut(shapely.difference(square, shapely.union_all(found)))
        found += [p for p in shapely.get_parts(left) if p.geom_type == "Polygon" and p.area > 100]
    return found


def asap(groups: dict[str, list[shapely.Polygon]]) -> str:
    lines = []
    for group, polygons in groups.items():
        for polygon in polygons:
            points = "".join(
                f'<Coordinate Order="{i}" X="{x:.1f}" Y="{y:.1f}"/>'
                for i, (x, y) in enumerate(polygon.exterior.coords[:-1])
            )
            lines.append(
                f'<Annotation Name="a" Type="Polygon" PartOfGroup={quoteattr(group)}><Coordinates>{points}'
                "</Coordinates></Annotation>"
            )
    return f"<ASAP_Annotations><Annotations>{''.join(lines)}</Annotations></ASAP_Annotations>\n"


def train(work: Path, labels: str, unannotated: str, seed: int, more: list[str]) -> float:
    """Train, and return the validation mIoU of the last line."""
    words = [
        *(
            "--slide_path",
            work / "train/slides",
            "--label_path",
            work / "train" / labels,
            "--label_format",
            "xml",
        ),
        *("--valid_slide_path", work / "val/slides", "--valid_label_path", work / "val/masks"),
        *("--label_map", "Tumor:1", "_0:1", "_1:1", "_2:0", "normal:0", "0:0", "255:1"),
        *("--unannotated", unannotated, "--seed", seed, *OPTIONS.split(), *more),
        *("--log_dir", work / f"run_{labels}_{unannotated}_{seed}"),
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *map(str, words)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"train.py ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1].split()[2])


if __name__ == "__main__":
    main()
