"""Classical single-frame DICOM series: slices in, one volume with its geometry out.

Geometry follows DICOM PS3.3 C.7.6.2: a pixel (row r, column c) lies at
``ImagePositionPatient + c * PixelSpacing[1] * row_cosines + r * PixelSpacing[0] * column_cosines`` in the patient's
left-posterior-superior (LPS) millimetres; the affine returned is in RAS, as NIfTI and MONAI have it. What cannot be
read exactly is refused with the reason, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dpeq.errors import DataError

__all__ = ["SliceHeader", "Volume", "order_slices", "read_header", "read_volume"]

_TAGS = [
    "SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
]  # fmt: skip
_POSITION_TOLERANCE = 0.01  # of the slice distance
_DIRECTION_TOLERANCE = 1e-4
_BROKEN = (OSError, ValueError, TypeError, EOFError, AttributeError, KeyError, RuntimeError, NotImplementedError)
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SliceHeader:
    """What grouping and ordering need of one file."""

    path: Path
    modality: str
    patient_id: str
    study: str
    series: str
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Volume:
    """``voxels`` float32 ``[columns, rows, slices]`` in rescaled units (HU for CT); ``affine`` voxel to RAS mm."""

    voxels: np.ndarray
    affine: np.ndarray


def read_header(path: Path) -> SliceHeader:
    """The header of one file; raises :class:`DataError` with the reason when it is no usable image slice."""
    try:
        return _header(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS))
    except InvalidDicomError as error:
        raise DataError("not a DICOM file") from error
    except _BROKEN as error:
        raise DataError(f"unreadable DICOM file ({_line(error)})") from error


def _header(path: Path, data: Dataset) -> SliceHeader:
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise DataError("enhanced multi-frame image, which is not supported")
    for tag in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not str(data.get(tag) or "").strip():
            raise DataError(f"{tag} is missing")
    if int(data.get("SamplesPerPixel") or 1) != 1 or data.get("PhotometricInterpretation") != "MONOCHROME2":
        raise DataError(
            f"not a plain grey-scale image ({data.get('PhotometricInterpretation') or 'no interpretation'})"
        )
    # A look-up table replaces slope and intercept (PS3.3 C.11.1); a CT without either has values in no known unit.
    if data.get("ModalityLUTSequence"):
        raise DataError("values behind a modality look-up table, which is not supported")
    if data.get("Modality") == "CT" and (data.get("RescaleSlope") is None or data.get("RescaleIntercept") is None):
        raise DataError("a CT slice without rescale slope and intercept, so its values are not Hounsfield units")
    orientation = _numbers(data, "ImageOrientationPatient", 6)
    position, spacing = _numbers(data, "ImagePositionPatient", 3), _numbers(data, "PixelSpacing", 2)
    if min(spacing) <= 0 or not data.get("Rows") or not data.get("Columns"):
        raise DataError("pixel spacing or matrix size is not positive")
    return SliceHeader(
        path,
        str(data.get("Modality", "")),
        str(data.PatientID).strip(),
        str(data.StudyInstanceUID),
        str(data.SeriesInstanceUID),
        orientation,
        position,
        spacing,
        (int(data.Rows), int(data.Columns)),
    )


def order_slices(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Slices of one series along their normal; raises :class:`DataError` unless they fill a regular grid."""
    first = headers[0]
    for header in headers:
        if header.shape != first.shape:
            raise DataError(f"slices of different sizes ({first.shape} and {header.shape})")
        if not np.allclose(header.orientation, first.orientation, atol=_DIRECTION_TOLERANCE):
            raise DataError("slices of different orientations")
        if not np.allclose(header.spacing, first.spacing, rtol=1e-4):
            raise DataError("slices of different pixel spacings")
    if len(headers) < 2:
        raise DataError("a single slice, which has no distance to the next")
    row, column = _cosines(first)
    normal = np.cross(row, column)
    ordered = sorted(headers, key=lambda h: float(np.dot(h.position, normal)))
    positions = np.array([h.position for h in ordered])
    steps = np.diff(positions, axis=0)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    distance = float(np.linalg.norm(step))
    along = steps @ normal
    if float(along.min()) < 1e-3:
        raise DataError("two slices at the same position")
    if float(np.abs(steps - step).max()) > _POSITION_TOLERANCE * distance:
        raise DataError("slices at irregular distances (missing, or of several volumes)")
    if float(np.linalg.norm(step - distance * normal)) > _POSITION_TOLERANCE * distance:
        raise DataError("slices shifted against each other (gantry tilt)")
    return ordered


def read_volume(paths: Sequence[Path]) -> Volume:
    """Reads the files of one series, in any order.

    Raises:
        DataError: when pixels cannot be decoded or geometry is irregular; it counts files and names none, because
            their names may identify a patient.
    """
    planes = {}
    headers = []
    for number, path in enumerate(paths, start=1):
        try:
            header, planes[path] = _read_slice(path)
        except DataError as error:
            raise DataError(f"file {number} of {len(paths)} of the series: {error}") from error
        headers.append(header)
    ordered = order_slices(headers)
    voxels = np.stack([planes[header.path].T for header in ordered], axis=-1)
    first, last = ordered[0], ordered[-1]
    row, column = _cosines(first)
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = (np.array(last.position) - np.array(first.position)) / (len(ordered) - 1)
    affine[:3, 3] = first.position
    return Volume(voxels, _RAS @ affine)


def _read_slice(path: Path) -> tuple[SliceHeader, np.ndarray]:
    """Header and pixels (float32 ``[rows, columns]``, rescaled) of one file."""
    try:
        data = pydicom.dcmread(path)
        header = _header(path, data)
        pixels = data.pixel_array
        slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    except InvalidDicomError as error:
        raise DataError("not a DICOM file") from error
    except OSError as error:  # its own text names the path, which may name the patient
        raise DataError(f"cannot be opened ({error.strerror or type(error).__name__})") from error
    except _BROKEN as error:
        raise DataError(f"its pixels cannot be decoded ({_line(error)})") from error
    # In float64 first: a product of a 16-bit value and a slope is exact there, and rounded once.
    return header, (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _cosines(header: SliceHeader) -> tuple[np.ndarray, np.ndarray]:
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    unit = np.allclose([row @ row, column @ column], 1, atol=1e-3)
    if not unit or abs(row @ column) > 1e-3:
        raise DataError("ImageOrientationPatient is not a pair of perpendicular unit vectors")
    return row, column


def _numbers(data: Any, tag: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in data[tag].value)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{tag} is missing or not {count} numbers") from error
    if len(values) != count or not np.isfinite(values).all():
        raise DataError(f"{tag} is missing or not {count} numbers")
    return values
