"""The header of one DICOM file: which image it is of, where its slice lies, and what speaks against reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from dpeq.data.attributes import age_band, device_of, sex_of, site_key
from dpeq.data.readers.dicom_file import (
    DicomFile,
    identifying,
    integer,
    numbers,
    open_dicom,
    text,
    value,
)
from dpeq.data.readers.dicom_frames import is_enhanced, members
from dpeq.data.readers.dicom_kinds import FLAT, NEEDS_PLACE, modality_word, require_image
from dpeq.data.readers.dicom_pixels import Layout, layout_of, scale_of
from dpeq.data.readers.dicom_place import check_spacing, place_of
from dpeq.data.readers.dicom_planes import Plane
from dpeq.data.readers.source import Header, Member, Refused, Slice

__all__ = ["KEYS", "header_of", "plane_of", "read_header"]

# What tells volumes of one series apart, and (the first three) what must be the same throughout one. Times of the clock
# are left out: they tell slices apart, not volumes.
KEYS = (
    "FrameOfReferenceUID", "RescaleType", "Units", "ImageType", "EchoNumbers", "EchoTime", "InversionTime", "FlipAngle",
    "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "NominalPercentageOfCardiacPhase",
    "FrameReferenceTime", "DiffusionBValue", "DiffusionGradientOrientation", "ConvolutionKernel", "KVP", "StackID",
)  # fmt: skip

_GROUPS = (
    ("sex", "PatientSex", sex_of),
    ("age", "PatientAge", age_band),
    ("site", "InstitutionName", site_key),
    ("device", "Manufacturer", device_of),
)


def read_header(path: Path) -> Header:
    """What indexing keeps of one DICOM file; its voxels are not read.

    Raises:
        Refused: when it is no image, or none that is read exactly.
    """
    with open_dicom(path) as opened:
        return header_of(opened)


def header_of(opened: DicomFile) -> Header:
    """As :func:`read_header`, of a file that is open."""
    data = opened.data
    require_image(data)
    ids = [text(data, tag) for tag in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
    if not ids[0]:
        raise Refused("no patient id")
    if not ids[1] or not ids[2]:
        raise Refused("no study or series id")
    code = text(data, "Modality").upper()
    frames = integer(data, "NumberOfFrames", 1)
    enhanced = is_enhanced(data)
    if frames > 1 and not enhanced:
        raise Refused("a film without geometry")
    layout = layout_of(opened, frames)
    shape = (layout.samples, layout.columns, layout.rows, 1)
    parts: tuple[Member, ...] = ()
    where = None
    if enhanced:
        shape, parts = members(data, layout)
    else:
        where = _slice(data, code, KEYS)
        scale_of(data, layout)
    patient, study, series = ids
    return Header(
        "enhanced" if enhanced else "dicom",
        shape,
        modality_word(code),
        patient,
        study,
        series,
        members=parts,
        slice=where,
        burned_in=text(data, "BurnedInAnnotation").upper() == "YES",
        identifying=identifying(data),
        groups=_groups(data),
    )


def _groups(data: Dataset) -> tuple[tuple[str, str], ...]:
    """What can be said of groups; never a date of birth, a model or a serial number."""
    found = []
    for name, keyword, meaning in _GROUPS:
        try:
            stated = meaning(text(data, keyword))
        except Refused:  # bytes that are no text: an image is not lost for what it can do without
            continue
        if stated:
            found.append((name, stated))
    return tuple(found)


def plane_of(opened: DicomFile) -> tuple[Plane, Layout]:
    """Where the slice of a file lies and how its pixels are stored, of a file that was indexed: its keys are left out.

    Raises:
        Refused: as :func:`read_header`.
    """
    data = opened.data
    require_image(data)
    if is_enhanced(data) or integer(data, "NumberOfFrames", 1) > 1:
        raise Refused("not the slices that were indexed")
    code = text(data, "Modality").upper()
    layout = layout_of(opened)
    shape = (layout.samples, layout.columns, layout.rows, 1)
    return Plane(_slice(data, code, ()), shape, modality_word(code)), layout


def _slice(data: Dataset, code: str, names: Sequence[str]) -> Slice:
    number = None if value(data, "InstanceNumber") is None else integer(data, "InstanceNumber")
    keys = tuple((name, found) for name in names if (found := text(data, name)))
    instance = text(data, "SOPInstanceUID") if names else ""
    if code not in FLAT:
        place = place_of(data, data, data)
        if place is not None:
            return Slice(*place, number, keys, instance)
        if code in NEEDS_PLACE:
            raise Refused("no position, no orientation or no pixel spacing")
    # Calibrated at the patient where it is there; the detector's own spacing is larger by the magnification.
    spacing = numbers(data, "PixelSpacing", 2) or numbers(data, "ImagerPixelSpacing", 2)
    check_spacing(spacing)
    return Slice((), (), spacing, None, number, keys, instance)
