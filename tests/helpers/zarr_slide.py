"""Writes slides in OME-Zarr: version 0.4 in Zarr 2, and 0.5 in Zarr 3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorstore


def write_zarr(
    folder: Path,
    array: np.ndarray,
    spacing: float | None = 0.25,
    downsamples: Sequence[int] = (1, 2, 4),
    version: str = "0.5",
    axes: str = "tczyx",
    chunk: int = 64,
    fill: int = 255,
) -> Path:
    """Write a slide of uint8 RGB (h, w, 3). Chunks that have the fill value are not written. Return the folder."""
    folder.mkdir(parents=True)
    datasets = []
    for number, downsample in enumerate(downsamples):
        size = (array.shape[1] // downsample, array.shape[0] // downsample)
        level = array if downsample == 1 else cv2.resize(array, size, interpolation=cv2.INTER_AREA)
        _write(folder / str(number), level, version, axes, chunk, fill)
        scale = [(spacing or 1.0) * downsample if axis in "yx" else 1.0 for axis in axes]
        datasets.append(
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    unit = {"unit": "micrometer"} if spacing is not None else {}
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}}
    described = [{"name": axis, **kinds.get(axis, {"type": "space", **unit})} for axis in axes]
    write_attributes(
        folder, {"multiscales": [{"version": version, "axes": described, "datasets": datasets}]}, version
    )
    return folder


def write_attributes(folder: Path, attributes: dict[str, Any], version: str) -> None:
    if version == "0.4":
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attributes))
    else:
        content = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"ome": {"version": version, **attributes}},
        }
        (folder / "zarr.json").write_text(json.dumps(content))


def _write(path: Path, level: np.ndarray, version: str, axes: str, chunk: int, fill: int) -> None:
    lengths = {"y": level.shape[0], "x": level.shape[1], "c": level.shape[2]}
    shape = [lengths.get(axis, 1) for axis in axes]
    chunks = [chunk if axis in "yx" else 1 for axis in axes]
    spec: dict[str, Any] = {"kvstore": {"driver": "file", "path": f"{path}/"}, "create": True}
    if version == "0.4":
        metadata: dict[str, Any] = {
            "compressor": {"id": "blosc", "cname": "lz4"},
            "chunks": chunks,
            "fill_value": fill,
        }
        metadata["dimension_separator"] = "/"
        spec |= {"driver": "zarr", "metadata": {**metadata, "dtype": "|u1", "shape": shape}}
    else:
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        codecs = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}]
        metadata = {"chunk_grid": grid, "codecs": codecs, "fill_value": fill}
        spec |= {"driver": "zarr3", "metadata": {**metadata, "data_type": "uint8", "shape": shape}}
    store = tensorstore.open(spec).result()
    order = [axis for axis in axes if axis in "yxc"]
    inner = level.transpose(["yxc".index(axis) for axis in order])
    store[tuple(slice(None) if axis in order else 0 for axis in axes)].write(inner).result()
