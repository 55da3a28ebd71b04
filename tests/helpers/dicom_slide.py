"""Writes whole slides as DICOM: a folder with a file for each level, as OpenSlide wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)


def write_dicom(
    folder: Path,
    array: np.ndarray,
    spacing: float | None = 0.25,
    downsamples: Sequence[int] = (1, 2, 4),
    tile: int = 64,
    series: str = "",
    jpeg: bool = True,
    label: bool = False,
) -> Path:
    """Write a slide of uint8 RGB (h, w, 3) into `level_N.dcm`, and into `label.dcm` if asked. Return the folder.

    Levels are averages, in baseline JPEG of quality 90 without subsampling, or not compressed. `spacing` is in µm/px.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    height, width = array.shape[:2]
    for number, downsample in enumerate(downsamples):
        size = (width // downsample, height // downsample)
        level = array if downsample == 1 else cv2.resize(array, size, interpolation=cv2.INTER_AREA)
        data = _instance(level, tile, jpeg)
        data.SeriesInstanceUID = series
        data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if number == 0 else "RESAMPLED"]
        measures = Dataset()
        if spacing is not None:
            measures.PixelSpacing = [spacing * downsample / 1000] * 2  # mm
        measures.SliceThickness = 0.001
        groups = Dataset()
        groups.PixelMeasuresSequence = [measures]
        data.SharedFunctionalGroupsSequence = [groups]
        _save(data, folder / f"level_{number}.dcm")
    if label:
        data = _instance(np.full((tile, tile, 3), 255, np.uint8), tile, jpeg)
        data.SeriesInstanceUID = series
        data.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
        _save(data, folder / "label.dcm")
    return folder


def write_ct(path: Path) -> Path:
    """Write a DICOM file that is no slide."""
    data = _instance(np.zeros((64, 64, 3), np.uint8), 64, jpeg=False)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SeriesInstanceUID = generate_uid()
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    _save(data, path)
    return path


def _instance(pixels: np.ndarray, tile: int, jpeg: bool) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = data.FrameOfReferenceUID = generate_uid()
    data.Modality = "SM"
    height, width = pixels.shape[:2]
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.TotalPixelMatrixFocalPlanes = 1
    data.Rows = data.Columns = tile
    data.SamplesPerPixel, data.PlanarConfiguration, data.PixelRepresentation = 3, 0, 0
    data.PhotometricInterpretation = "YBR_FULL_422" if jpeg else "RGB"
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.DimensionOrganizationType = "TILED_FULL"
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    tiles = [
        np.ascontiguousarray(padded[y : y + tile, x : x + tile])
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]
    data.NumberOfFrames = len(tiles)
    if jpeg:
        data.PixelData = encapsulate([_jpeg(pixels) for pixels in tiles])
        data["PixelData"].VR = "OB"
    else:
        data.add_new("PixelData", "OB", b"".join(pixels.tobytes() for pixels in tiles))
    return data


def _jpeg(pixels: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def _save(data: FileDataset, path: Path) -> None:
    data.save_as(path, enforce_file_format=True)
