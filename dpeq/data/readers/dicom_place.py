"""Where one slice or frame lies in the patient, as its header says (PS3.3 C.7.6.2)."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dpeq.data.readers.dicom_file import numbers, optional_number
from dpeq.data.readers.dicom_planes import cosines_of
from dpeq.data.readers.source import Refused

__all__ = ["check_spacing", "place_of"]

_FAR = 1e5  # mm


def place_of(
    place: Dataset, turn: Dataset, measures: Dataset
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], float | None] | None:
    """Orientation, position, spacing and thickness of a slice or frame, as in :class:`Slice`.

    Args:
        place, turn, measures: where to look for position, orientation and the rest: one header, or functional groups.

    Returns:
        None when position, orientation or spacing is not given.

    Raises:
        Refused: for numbers that cannot be.
    """
    orientation, position = numbers(turn, "ImageOrientationPatient", 6), numbers(place, "ImagePositionPatient", 3)
    spacing = numbers(measures, "PixelSpacing", 2)
    if not orientation or not position or not spacing:
        return None
    between = [optional_number(measures, name) or 0 for name in ("SpacingBetweenSlices", "SliceThickness")]
    thickness = next((edge for edge in between if edge > 0), None)
    check_spacing((*spacing, thickness or 1.0))
    if max(map(abs, position)) > _FAR:
        raise Refused("a position or spacing beyond any patient")
    cosines_of(orientation)
    return orientation, position, spacing, thickness


def check_spacing(spacing: tuple[float, ...]) -> None:
    """Refuses edges that no pixel of a patient has; () is none at all."""
    if spacing and min(spacing) <= 0:
        raise Refused("a pixel spacing that is not positive")
    if spacing and not 1e-6 <= min(spacing) <= max(spacing) <= _FAR:
        raise Refused("a position or spacing beyond any patient")
