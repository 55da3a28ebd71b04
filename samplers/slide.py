"""Reading of whole-slide images: one thin class over libvips (TIFF, SVS, PNG, JPEG) and OpenSlide (the rest).

Frames: `_l0` is a pixel of level 0; everything else carries its level. Positions are given in level 0, sizes at the
level (or spacing) that is read, spacings in µm/px. libvips reads tiled JPEG about three times as fast as OpenSlide.

What a slide that cannot be decoded must never give is grey: libvips fills what is missing of a damaged JPEG tile
and only leaves a message in its error buffer (whatever `fail_on` says), so that buffer is looked at after each read.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import openslide
import pyvips

log = logging.getLogger(__name__)

# Formats that OpenSlide knows and libvips reads right (None: OpenSlide doesn't know it, such as PNG).
# Other vendors' files are often TIFF too, but with overlapping tiles, several scenes or giant JPEG strips.
VIPS_VENDORS = (None, "generic-tiff", "aperio", "philips", "trestle")
DEFAULT_SPACING = 0.25  # µm/px, 40×
PLAUSIBLE_SPACING = (0.05, 20.0)  # µm/px; outside of it a resolution tag is about print (72 dpi) or forgotten
# libvips keeps up to two rows of decoded tiles a level: 300 MB for a slide of 200 000 pixels width.
# Above this the level is opened anew, which costs less than a millisecond.
MAX_LEVEL_BYTES = 64 << 20
_OPENSLIDE_CACHE_BYTES = 64 << 20

# libvips would keep files open, and their tiles, after we have closed them.
pyvips.cache_set_max(0)


class DataError(ValueError):
    """Input that cannot be used. The message names the file and what is wrong with it."""


class ReadError(RuntimeError):
    """A region of a slide that could not be read or decoded."""


class _Level(NamedTuple):
    """Where a level is in the file and what a region of it takes."""

    options: dict[str, int]  # of the libvips loader: the page or SubIFD
    width: int
    height: int
    tile: tuple[int, int] | None  # (width, height) of a tile; None: decoded as a whole on the first read


class _Handle:
    """An open level in one thread: libvips regions belong to the thread that made them."""

    def __init__(self, image: Any) -> None:
        self.image = image
        self.region = pyvips.Region.new(image)
        self.held_bytes = 0  # about what libvips keeps of decoded tiles


class _Faults:
    """Finds out whether libvips complained during a read.

    libvips has one error buffer for all threads. Whoever finds a message in it counts up and empties it; a read
    during which the count went up was perhaps the one that was meant, so it fails as well and is tried again.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def message(self) -> str:
        text = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer()).decode(errors="replace")
        return " ".join(text.split())

    def take(self) -> str:
        with self._lock:
            text = self.message()
            if text:
                self.count += 1
                pyvips.vips_lib.vips_error_clear()
            return text


_faults = _Faults()


class Slide:
    """An open slide (uint8 RGB) or label mask (uint8, one band); a context manager.

    Attributes: `path`; `width`, `height` at level 0; `level_sizes` ((w, h), …); `downsamples` real ones, [0] == 1.0;
    `spacing` µm/px at level 0 and `spacing_known` (False: 0.25 was assumed, with a warning).
    Raises DataError if it cannot be opened, ReadError if a region cannot be decoded, ValueError for a region that
    is not inside. May be used by several threads.
    """

    def __init__(self, path: str | os.PathLike[str], kind: Literal["image", "label"] = "image") -> None:
        self.path = Path(path)
        self.kind = kind
        self._threads = threading.local()
        self._handles: list[dict[int, _Handle]] = []  # of all threads
        self._lock = threading.Lock()
        self._closed = False
        self._openslide: openslide.OpenSlide | None = None
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        if self.path.stat().st_size == 0:
            raise DataError(f"{self.path}: the file is empty (0 bytes)")
        vendor = _vendor(self.path)
        if vendor in VIPS_VENDORS:
            self._levels, spacing = _vips_levels(self.path, kind, vendor)
        else:
            self._levels, spacing = self._open_openslide()
        self.width, self.height = self._levels[0].width, self._levels[0].height
        self.level_sizes = tuple((level.width, level.height) for level in self._levels)
        self.downsamples = tuple(_downsample(self.level_sizes[0], size) for size in self.level_sizes)
        self.spacing_known = spacing is not None
        self.spacing = DEFAULT_SPACING if spacing is None else spacing
        if spacing is None and kind == "image":
            log.warning("%s: no spacing in its metadata, taken as %g µm/px", self.path, DEFAULT_SPACING)

    def read(self, x_l0: int, y_l0: int, width: int, height: int, level: int = 0) -> np.ndarray:
        """Region of `width` × `height` pixels of `level`, its corner at level 0: uint8 (h, w, 3); a label (h, w).

        The corner is rounded to the nearest pixel of the level. Raises ValueError for a region that is not inside
        the slide and ReadError for one that cannot be decoded.
        """
        if not 0 <= level < len(self._levels):
            raise ValueError(f"{self.path}: has no level {level}, only 0 to {len(self._levels) - 1}")
        downsample = self.downsamples[level]
        x = inside(x_l0 / downsample, width, self._levels[level].width, f"{self.path}: x, level {level}")
        y = inside(y_l0 / downsample, height, self._levels[level].height, f"{self.path}: y, level {level}")
        return self._fetch(x, y, width, height, level)

    def read_level(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Like `read`, but with x and y in pixels of `level`."""
        return self._fetch(x, y, width, height, level)

    def read_at(self, x_l0: int, y_l0: int, width: int, height: int, spacing: float) -> np.ndarray:
        """Region of `width` × `height` pixels of `spacing` µm/px, like `read`.

        Taken from the next finer level and resized by area (a label: nearest); enlarged if finer than level 0.
        """
        downsample = spacing / self.spacing
        if self.kind == "label":
            return self.read_grid(x_l0, y_l0, width, height, downsample)
        level = self.level_at_least(downsample)
        scale = downsample / self.downsamples[level]
        source = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = self.read(x_l0, y_l0, *source, level)
        if source == (width, height):
            return pixels
        return cv2.resize(
            pixels, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        )

    def read_grid(self, x_l0: float, y_l0: float, width: int, height: int, downsample: float) -> np.ndarray:
        """The nearest pixels to the centres (x_l0 + (i + 0.5) · downsample, …) of a grid, for labels: uint8 (h, w).

        Of the next finer level. Raises as `read` does.
        """
        level = self.level_at_least(downsample)
        places = []
        for start, size, limit in zip((x_l0, y_l0), (width, height), self.level_sizes[level]):
            inside(
                start / downsample,
                size,
                math.ceil(limit * self.downsamples[level] / downsample),
                str(self.path),
            )
            centres = (start + (np.arange(size) + 0.5) * downsample) / self.downsamples[level]
            places.append(np.minimum(centres.astype(np.int64), limit - 1))
        xs, ys = places
        spans = (int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1)
        pixels = self._fetch(int(xs[0]), int(ys[0]), *spans, level)
        return pixels if spans == (width, height) else pixels[np.ix_(ys - ys[0], xs - xs[0])]

    def thumbnail(self, max_side: int) -> np.ndarray:
        """The whole slide with its longer side at most `max_side`: uint8 (h, w, 3); a label (h, w).

        From the next finer level in strips of rows; slow for a large slide that has no pyramid.
        """
        downsample = max(1.0, max(self.width, self.height) / max_side)
        level = self._levels[self.level_at_least(downsample)]
        number = self._levels.index(level)
        width, height = max(1, int(self.width / downsample)), max(1, int(self.height / downsample))
        rows = np.linspace(0, level.height, height + 1).round().astype(int)
        step = max(1, (16 << 20) * height // (level.width * level.height))  # thumbnail rows of about 16 Mpx
        strips = []
        for first in range(0, height, step):
            top, bottom = rows[first], rows[min(first + step, height)]
            strip = self._fetch(0, int(top), level.width, int(bottom - top), number)
            size = (width, min(step, height - first))
            method = cv2.INTER_AREA if self.kind == "image" else cv2.INTER_NEAREST
            strips.append(cv2.resize(strip, size, interpolation=method))
        return np.concatenate(strips)

    def level_at_least(self, downsample: float) -> int:
        """The coarsest level whose downsample is at most `downsample` (to 0.1 %: 4.0003 will do for 4); else 0."""
        return max(i for i, d in enumerate(self.downsamples) if i == 0 or d <= downsample * 1.001)

    @property
    def held_bytes(self) -> int:
        """About what libvips keeps of this slide in memory."""
        return sum(handle.held_bytes for handles in self._handles for handle in list(handles.values()))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for handles in self._handles:
                handles.clear()
            if self._openslide is not None:
                self._openslide.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _fetch(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        """Pixels of a region that is inside, x and y at `level`."""
        if self._closed:
            raise ValueError(f"{self.path}: is closed")
        if self._openslide is not None:
            return self._fetch_openslide(x, y, width, height, level)
        handles = self._thread_handles()
        before = _faults.count
        try:
            if level not in handles:
                handles[level] = _Handle(_vips_image(self.path, self.kind, self._levels[level].options))
            handle = handles[level]
            data = handle.region.fetch(x, y, width, height)
            problem = _faults.take() or (
                "another read of this process failed" if _faults.count != before else ""
            )
        except (pyvips.Error, DataError) as error:
            problem = " ".join(str(error).split())
        if problem:
            handles.pop(
                level, None
            )  # it may keep the damaged tile, and would give it without a word next time
            raise ReadError(f"{self.path}: level {level}, x {x}, y {y}, {width} × {height}: {problem}")
        self._count(handles, level, width, height)
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)
        if self.kind == "label":
            return pixels[:, :, 0]
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)

    def _thread_handles(self) -> dict[int, _Handle]:
        handles: dict[int, _Handle] | None = getattr(self._threads, "handles", None)
        if handles is None:
            handles = self._threads.handles = {}
            with self._lock:
                self._handles.append(handles)
        return handles

    def _count(self, handles: dict[int, _Handle], level: int, width: int, height: int) -> None:
        """Adds what a read leaves in libvips' tile cache; a level with too much is opened anew next time."""
        spec, handle = self._levels[level], handles[level]
        bands = handle.image.bands
        if spec.tile is None:
            handle.held_bytes = spec.width * spec.height * bands
            return
        columns, rows = (-(-size // tile) + 1 for size, tile in zip((width, height), spec.tile))
        two_rows = 2 * (-(-spec.width // spec.tile[0]) + 1)
        tile_bytes = spec.tile[0] * spec.tile[1] * bands
        handle.held_bytes = min(handle.held_bytes + columns * rows * tile_bytes, two_rows * tile_bytes)
        if handle.held_bytes > MAX_LEVEL_BYTES:
            del handles[level]

    def _open_openslide(self) -> tuple[list[_Level], float | None]:
        try:
            self._openslide = openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            raise DataError(f"{self.path}: cannot be opened: {error}") from error
        self._openslide.set_cache(_openslide_cache())
        return _openslide_levels(self._openslide)

    def _fetch_openslide(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        downsample = self.downsamples[level]
        corner_l0 = (round(x * downsample), round(y * downsample))
        try:
            with self._lock:
                if self._openslide is None:
                    raise ValueError(f"{self.path}: is closed")
                slide = self._openslide
            rgba = np.asarray(slide.read_region(corner_l0, level, (width, height)))
        except openslide.OpenSlideError as error:
            with self._lock:  # OpenSlide refuses everything after an error
                self._open_openslide()
            raise ReadError(
                f"{self.path}: level {level}, x {x}, y {y}, {width} × {height}: {error}"
            ) from error
        if self.kind == "label":
            return np.ascontiguousarray(rgba[:, :, 0])
        pixels = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
        pixels[rgba[:, :, 3] == 0] = 255  # was never scanned
        return pixels


class SlideCache:
    """Keeps the last used slides or labels open: at most `max_open`, and at most `max_bytes` decoded tiles."""

    def __init__(self, max_open: int = 16, max_bytes: int = 256 << 20) -> None:
        if max_open < 1:
            raise ValueError(f"max_open is {max_open}, must be at least 1")
        self.max_open = max_open
        self.max_bytes = max_bytes
        self._open: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, opener: Callable[[Any], Any]) -> Any:
        """What `opener(key)` gave, as long as it is open. Closes what was not used for longest."""
        if key in self._open:
            self._open.move_to_end(key)
            item = self._open[key]
        else:
            item = self._open[key] = opener(key)
        while len(self._open) > 1 and (len(self._open) > self.max_open or self._bytes() > self.max_bytes):
            self._open.popitem(last=False)[1].close()
        return item

    def drop(self, key: Hashable) -> None:
        """Closes what belongs to `key`, if it is open."""
        if key in self._open:
            self._open.pop(key).close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __len__(self) -> int:
        return len(self._open)

    def _bytes(self) -> int:
        return sum(getattr(item, "held_bytes", 0) for item in self._open.values())


def inside(start: float, size: int, limit: int, name: str) -> int:
    """`start` rounded to a pixel, such that `size` pixels end before `limit`; ValueError if they are not inside.

    One pixel of tolerance at the end: a coarser level's size is rounded, so what ends with level 0 may end behind it.
    """
    if size < 1 or start < 0 or start + size >= limit + 1 or size > limit:
        raise ValueError(f"{name}: {start:g} + {size} pixels are not inside of 0 to {limit}")
    return min(int(start + 0.5), limit - size)


def _vendor(path: Path) -> str | None:
    try:
        vendor: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    return vendor


def _vips_image(path: Path, kind: str, options: dict[str, int]) -> Any:
    """A level as libvips image of 8-bit RGB or grey; a label with one band. DataError if that cannot be."""
    try:
        # Random access: sequential reading would refuse to go back. Any damage is an error, never a grey tile.
        image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error", **options)
    except pyvips.Error as error:
        raise DataError(f"{path}: cannot be opened: {' '.join(str(error).split())}") from error
    _faults.take()
    if kind == "label":
        # A grey mask that was saved as RGB has its value in each band.
        colours = image.bands - (1 if image.hasalpha() else 0)
        band = image if image.bands == 1 else image[0]
        for number in range(1, colours):
            band = (band > image[number]).ifthenelse(band, image[number])
        return band if band.format == "uchar" else band.cast("uchar")
    if image.format != "uchar":
        raise DataError(f"{path}: has {image.format} pixels, 8 bits a channel are needed")
    if image.hasalpha():
        image = image.flatten(background=255)
    return image if image.bands in (1, 3) else image.colourspace("srgb")


def _vips_levels(path: Path, kind: str, vendor: str | None) -> tuple[list[_Level], float | None]:
    """The levels of an image that libvips reads, and its spacing if known."""
    image = _vips_image(path, kind, {})
    fields = set(image.get_fields())
    tile = _tile(image)
    levels = [_Level({}, image.width, image.height, tile)]
    # Pyramids are tiled: pages in strips are a scanner's thumbnail, label or macro image.
    pages: list[dict[str, int]] = []
    if tile is not None:
        pages = [{"subifd": i} for i in range(image.get("n-subifds") if "n-subifds" in fields else 0)]
        pages = pages or [{"page": i} for i in range(1, image.get("n-pages") if "n-pages" in fields else 1)]
    for options in pages:
        page = _vips_image(path, kind, options)
        if _tile(page) is not None and _is_level((page.width, page.height), levels):
            levels.append(_Level(options, page.width, page.height, _tile(page)))
    description = image.get("image-description") if "image-description" in fields else ""
    spacing = _described_spacing(description)
    if vendor == "philips":  # pages are padded to whole tiles, the true sizes are in OpenSlide's geometry
        with openslide.OpenSlide(path) as slide:
            true, spacing = _openslide_levels(slide)
        if len(true) != len(levels):
            raise DataError(f"{path}: OpenSlide finds {len(true)} levels, libvips {len(levels)}")
        levels = [level._replace(width=t.width, height=t.height) for level, t in zip(levels, true)]
    if spacing is None and image.get("vips-loader").startswith("tiffload") and image.xres > 0:
        spacing = _plausible(1000 / image.xres)  # xres: pixels a millimetre
    return levels, spacing


def _tile(image: Any) -> tuple[int, int] | None:
    if image.get_typeof("tile-width") == 0:
        return None
    return image.get("tile-width"), image.get("tile-height")


def _is_level(size: tuple[int, int], levels: list[_Level]) -> bool:
    """Smaller than the last level, and of level 0's shape to within a pixel of rounding."""
    first, last = levels[0], levels[-1]
    scale = max(first.width, first.height) / max(size)
    fits = all(abs(full / scale - part) <= 2 for full, part in zip((first.width, first.height), size))
    return fits and size[0] < last.width and size[1] < last.height


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """How many level-0 pixels a pixel of a level of this size spans; whole if rounding explains the rest."""
    real = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = max(1, round(real))
    if all(abs(f / whole - s) < 1 for f, s in zip(full, size)):
        return float(whole)
    return real


def _described_spacing(description: str) -> float | None:
    """µm/px out of Aperio's or OME's image description."""
    found = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
    if not found:
        found = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', description)
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', description)
        if unit and unit.group(1) not in ("µm", "μm", "um", "&#181;m", "&#xb5;m"):
            return None
    return _plausible(float(found.group(1))) if found else None


def _plausible(spacing: float) -> float | None:
    low, high = PLAUSIBLE_SPACING
    return spacing if low <= spacing <= high else None


def _openslide_levels(slide: openslide.OpenSlide) -> tuple[list[_Level], float | None]:
    """Geometry as OpenSlide has it, and its spacing if known."""
    mpp = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    levels = [_Level({}, w, h, (256, 256)) for w, h in slide.level_dimensions]
    return levels, _plausible(float(mpp)) if mpp else None


_cache: list[Any] = []


def _openslide_cache() -> Any:
    """One cache for all slides: by default OpenSlide takes 32 MB for each."""
    if not _cache:
        _cache.append(openslide.OpenSlideCache(_OPENSLIDE_CACHE_BYTES))
    return _cache[0]
