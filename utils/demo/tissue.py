"""Paints stained tissue for the demo slides: NumPy and OpenCV without IO.

Two stains are painted as optical densities and turned into RGB by the Beer-Lambert law, after Ruifrok and Johnston,
"Quantification of histochemical staining by color deconvolution" (2001), with ImageJ's vectors. Lesions differ from
normal tissue by their cells (large, dark, irregular nuclei that are close together) and only a little by their tint:
follicles of normal tissue are about as blue, so that colour alone does not identify a lesion.

Coordinates are level-0 pixels of 0.25 µm; the nucleus of a lymphocyte is about 24 pixels wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from scipy.spatial.distance import pdist
from shapely.ops import polylabel

from samplers.labels import polygons

_HAEMATOXYLIN, _EOSIN = (0.644, 0.717, 0.267), (0.093, 0.954, 0.283)  # optical density in R, G, B
_GLASS = 243  # of 255: the light of the scanner through glass
_UNIT = 100  # planes are uint8 and hold the optical density times this
_STAMPS = 64  # different nuclei per kind of cell
_TRIES = 200  # places that are tried for each lesion


@dataclass(frozen=True)
class Stain:
    """The amount of each stain in the slides of a laboratory, relative to the usual amount."""

    haematoxylin: float = 1.0
    eosin: float = 1.0


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of a kind of cell; lengths are in pixels."""

    radius: tuple[float, float]  # from, to
    elongation: tuple[float, float]  # length : width, from, to; the area does not depend on it
    irregular: float  # deviation of the outline from an ellipse, as a fraction of the radius
    density: float  # optical density of haematoxylin in the nucleus
    step: int  # distance between neighbours


LYMPHOCYTE = Nuclei((9.5, 12.5), (1.0, 1.25), 0.04, 1.35, 27)
SPINDLE = Nuclei((8, 11), (2.2, 3.6), 0.06, 1.0, 64)
TUMOUR = Nuclei((14, 22), (1.0, 1.6), 0.14, 1.5, 40)


@dataclass(frozen=True)
class Layout:
    """The areas of a slide: valid polygons in level-0 pixels, whose coordinates have four decimals."""

    tissue: shapely.Polygon
    lesions: list[shapely.Polygon]
    exclusions: list[shapely.Polygon]  # normal tissue inside lesions


def make_layout(
    rng: np.random.Generator, size: int, lesions: int, longest: tuple[float, float] | None = None
) -> Layout:
    """Draw a piece of tissue with up to `lesions` separate lesions, the largest of them with an exclusion.

    longest: from and to how many pixels the longest diameter of the largest lesion is; the others are smaller. Without
    it lesions are 0.18 to 0.32 times as wide as the slide. ValueError: there is no place for such a lesion.
    """
    tissue = _blob(rng, (size / 2, size / 2), 0.45 * size, 0.09, limit=0.49 * size)
    found: list[shapely.Polygon] = []
    radii = np.sort(rng.uniform(0.09, 0.16, lesions))[::-1] * size
    if longest is not None:
        radii *= sum(longest) / 4.4 / radii[0]  # a rough outline is a little longer than twice its radius
    for radius in radii:
        for _ in range(_TRIES):
            centre = rng.uniform(0.1, 0.9, 2) * size
            lesion = _rounded(shapely.intersection(_blob(rng, centre, radius, 0.22), tissue))
            fits = lesion.geom_type == "Polygon" and lesion.is_valid and lesion.area > 0.6 * np.pi * radius**2
            if fits and longest is not None:
                low, high = (0, diameter(found[0])) if found else longest
                fits = low <= diameter(lesion) <= high
            if fits and all(lesion.distance(other) > 0.05 * size for other in found):
                found.append(lesion)
                break
        if longest is not None and not found:
            raise ValueError(f"no lesion of {longest} pixels in {_TRIES} tries, on a slide of {size} pixels")
    exclusions = []
    for lesion in found[:1]:
        centre = polylabel(lesion, tolerance=4)
        exclusions.append(_blob(rng, (centre.x, centre.y), 0.5 * lesion.exterior.distance(centre), 0.15))
    return Layout(tissue, found, exclusions)


def diameter(lesion: shapely.Polygon) -> float:
    """Return the longest diameter of a lesion in pixels."""
    return float(pdist(shapely.get_coordinates(lesion.convex_hull)).max())


def tumour_mask(layout: Layout, size: int) -> np.ndarray:
    """Return the lesions without exclusions, bool (size, size), as `samplers.labels.label` draws them from the XML."""
    lesions, exclusions = (
        polygons.fill(polygons.edges_of(shapely.MultiPolygon(parts)), 0, 0, size, size, 1.0)
        for parts in (layout.lesions, layout.exclusions)
    )
    return lesions & ~exclusions


def paint(rng: np.random.Generator, layout: Layout, tumour: np.ndarray, stain: Stain) -> np.ndarray:
    """Paint the slide at level 0: uint8 RGB (size, size, 3). `tumour` is the `tumour_mask`, bool (size, size)."""
    size = len(tumour)
    tissue = polygons.fill(polygons.edges_of(layout.tissue), 0, 0, size, size, 1.0)
    crowding = _noise(rng, size, 380)  # follicles where it is high, stroma and sinuses where it is low
    blue, pink = _ground(rng, tumour, crowding)
    follicle = np.clip(0.62 + 0.55 * crowding, 0.12, 1)
    for kind, chance in (
        (LYMPHOCYTE, np.where(tumour, np.float32(0.03), follicle)),
        (SPINDLE, np.where(tumour, np.float32(0.05), np.float32(0.7))),
        (TUMOUR, np.where(tumour, np.float32(0.97), np.float32(0))),
    ):
        _add_nuclei(rng, blue, kind, np.where(tissue, chance, 0))
    # Clefts and fat cells are as empty as the glass. All edges are blurred over a few pixels.
    clefts = np.abs(_noise(rng, size, 260)) < 0.03 * (_noise(rng, size, 500) - 0.5)
    empty = clefts | (_fat(rng, crowding) & ~tumour) | ~tissue
    light = cv2.GaussianBlur(np.where(empty, np.uint8(0), np.uint8(255)), (0, 0), 2.0)
    for plane in (blue, pink):
        cv2.GaussianBlur(plane, (0, 0), 0.8, dst=plane)
        cv2.multiply(plane, light, dst=plane, scale=1 / 255)
    return _to_rgb(blue, pink, stain)


def _blob(
    rng: np.random.Generator,
    centre: np.ndarray | tuple[float, float],
    radius: float,
    rough: float,
    limit: float = np.inf,
) -> shapely.Polygon:
    """Draw an irregular outline of 160 points around a centre, none of them farther away than `limit`."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    waves = np.arange(2, 14)[:, None]
    height = rng.normal(0, rough, waves.shape) / waves**0.8
    phase = rng.uniform(0, 2 * np.pi, waves.shape)
    shape = np.clip(1 + (height * np.cos(waves * angle + phase)).sum(axis=0), 0.4, 1.8)
    length = np.minimum(radius * shape, limit)
    return _rounded(shapely.Polygon(np.stack([np.cos(angle), np.sin(angle)], 1) * length[:, None] + centre))


def _rounded(geometry: shapely.Geometry) -> shapely.Geometry:
    """Round to the four decimals that ASAP writes, so that mask and XML have the same polygons."""
    return shapely.transform(geometry, lambda points: np.round(points, 4))


def _noise(rng: np.random.Generator, size: int, wave: float, stretch: int = 1) -> np.ndarray:
    """Draw smooth noise around 0, float32 (size, size), with blots `wave` pixels high and `stretch` times as wide."""
    rows, columns = int(size / wave) + 3, int(size / wave / stretch) + 3
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _ground(
    rng: np.random.Generator, tumour: np.ndarray, crowding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paint cytoplasm and fibres: the planes of haematoxylin and eosin, uint8 (size, size)."""
    size = len(tumour)
    soft = cv2.GaussianBlur(tumour.astype(np.float32), (0, 0), 4)
    # Wavy fibres are stretched noise that is bent.
    y, x = np.indices((size, size), dtype=np.float32, sparse=True)
    bend = _noise(rng, size, 150) * 40
    fibres = cv2.remap(
        _noise(rng, size, 7, stretch=9), x + bend, y + 2 * bend, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    grain = _noise(rng, size, 5)
    blue, pink = np.empty((2, size, size), np.uint8)
    for top in range(0, size, 256):  # in bands: large temporary arrays take longer to allocate than to fill
        b = slice(top, top + 256)
        tumour_b, crowding_b, grain_b = soft[b], crowding[b], grain[b]
        fibre_b = 0.10 * fibres[b] * (1 - 0.7 * tumour_b)
        _set(pink[b], 0.42 - 0.10 * crowding_b + fibre_b + 0.05 * grain_b + 0.06 * tumour_b)
        _set(blue[b], 0.14 + 0.03 * crowding_b + 0.04 * grain_b + 0.10 * tumour_b)
    return blue, pink


def _set(plane: np.ndarray, density: np.ndarray) -> None:
    """Write optical densities to a plane."""
    plane[:] = np.clip(density * _UNIT, 8, 255)


def _fat(rng: np.random.Generator, crowding: np.ndarray) -> np.ndarray:
    """Draw clusters of fat cells where there are few nuclei: bool (size, size)."""
    size, step = len(crowding), 96
    cells = np.zeros((size, size), np.uint8)
    for x, y in _scattered(rng, size, step, 0.08):
        if crowding[y, x] < -1.2:
            axes = (int(rng.integers(30, 48)), int(rng.integers(38, 52)))
            cv2.ellipse(cells, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, (1,), -1)
    return cells > 0


def _scattered(rng: np.random.Generator, size: int, step: int, jitter: float) -> np.ndarray:
    """Draw points (x, y) of a jittered hexagonal grid, about `step` pixels apart: int64 (n, 2)."""
    y, x = np.meshgrid(np.arange(step / 2, size, 0.87 * step), np.arange(step / 2, size, step), indexing="ij")
    x[1::2] += step / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0, jitter * step, points.shape)
    return np.clip(points.astype(np.int64), 0, size - 1)


def _add_nuclei(rng: np.random.Generator, blue: np.ndarray, kind: Nuclei, chance: np.ndarray) -> None:
    """Paint nuclei of a kind on the plane of haematoxylin; `chance` (0 … 1) is that of a nucleus at each pixel."""
    stamps = _stamps(rng, kind)
    points = _scattered(rng, len(blue), kind.step, 0.17)
    points = points[rng.random(len(points)) < chance[points[:, 1], points[:, 0]]]
    side = stamps.shape[1]
    padded = np.pad(blue, side // 2)
    for (x, y), number in zip(points.tolist(), rng.integers(len(stamps), size=len(points)).tolist()):
        window = padded[y : y + side, x : x + side]
        np.maximum(window, stamps[number], out=window)
    blue[:] = padded[side // 2 : side // 2 + len(blue), side // 2 : side // 2 + len(blue)]


def _stamps(rng: np.random.Generator, kind: Nuclei) -> np.ndarray:
    """Draw nuclei with chromatin and a darker membrane: uint8 (_STAMPS, side, side); the side is odd."""
    half = int(kind.radius[1] * kind.elongation[1] ** 0.5 * (1 + 3 * kind.irregular)) + 3
    count = (_STAMPS, 1, 1)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    turn = rng.uniform(0, np.pi, count)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    stretch = np.sqrt(rng.uniform(*kind.elongation, count))
    along, across = along / stretch, across * stretch
    angle = np.arctan2(across, along)
    outline = rng.uniform(*kind.radius, count)
    for wave in (2, 3, 4, 5):
        height = rng.normal(0, kind.irregular / wave, count)
        outline = outline * (1 + height * np.cos(wave * angle + rng.uniform(0, 2 * np.pi, count)))
    inside = outline - np.hypot(along, across)  # pixels from the membrane
    grains = rng.standard_normal((_STAMPS, *x.shape), dtype=np.float32)
    chromatin = np.stack([cv2.GaussianBlur(grain, (0, 0), 2.2) for grain in grains])
    chromatin /= chromatin.std()
    membrane = np.exp(-np.square((inside - 1.5) / 1.5))
    density = kind.density * rng.uniform(0.75, 1.25, count) * (0.8 + 0.2 * chromatin + 0.35 * membrane)
    return np.clip(density * _UNIT * np.clip(inside + 0.5, 0, 1), 0, 255).astype(np.uint8)


def _to_rgb(blue: np.ndarray, pink: np.ndarray, stain: Stain) -> np.ndarray:
    """Return the light that passes through both stains: uint8 RGB. `blue` and `pink` are the planes of densities."""
    density = np.arange(256) / _UNIT
    channels = []
    for haematoxylin, eosin in zip(_HAEMATOXYLIN, _EOSIN):
        first = _GLASS * np.exp(-haematoxylin * stain.haematoxylin * density)
        second = 255 * np.exp(-eosin * stain.eosin * density)
        light = [
            cv2.LUT(plane, np.round(table).astype(np.uint8))
            for plane, table in ((blue, first), (pink, second))
        ]
        channels.append(cv2.multiply(light[0], light[1], scale=1 / 255))
    return cv2.merge(channels)
