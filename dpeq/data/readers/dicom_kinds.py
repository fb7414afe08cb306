"""What a DICOM object is, by its SOP class and image type: an image that can be read, or the reason why not."""

from __future__ import annotations

from pydicom.dataset import Dataset

from dpeq.data.readers.dicom_file import text
from dpeq.data.readers.source import Refused

__all__ = ["FLAT", "NEEDS_PLACE", "modality_word", "require_image"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."

# By the end of the UID; one that ends in a dot stands for the whole family below it.
_NOT_IMAGES = {
    "7.1": "not an image (single bits)",
    "9.": "not an image (waveform)",
    "4.2": "not an image (spectroscopy)",
    "8": "not an image (overlay)",
    "9": "not an image (curve)",
    "129": "not an image (curve)",
    "10": "not an image (look-up table)",
    "11": "not an image (look-up table)",
    "11.": "not an image (presentation state)",
    "66": "not an image (raw data)",
    "66.1": "not an image (registration)",
    "66.2": "not an image (fiducials)",
    "66.3": "not an image (registration)",
    "66.4": "not an image (segmentation)",
    "66.5": "not an image (segmentation)",
    "66.6": "not an image (tractography)",
    "66.7": "not an image (segmentation)",
    "66.8": "not an image (segmentation)",
    "67": "not an image (value mapping)",
    "68.": "not an image (surface scan)",
    "78.": "not an image (measurements)",
    "79.": "not an image (measurements)",
    "80.": "not an image (measurements)",
    "88.59": "not an image (key objects)",
    "88.": "not an image (structured report)",
    "90.": "not an image (structured report)",
    "91.": "not an image (annotations)",
    "104.": "not an image (encapsulated document)",
    "131": "not an image (display)",
    "200.": "not an image (protocol)",
    "201.": "not an image (inventory)",
    "481.1": "an image of a radiotherapy device, which is not read",
    "481.2": "not an image (RT dose)",
    "481.3": "not an image (RT structure set)",
    "481.5": "not an image (RT plan)",
    "481.8": "not an image (RT plan)",
    "481.23": "an image of a radiotherapy device, which is not read",
    "481.24": "an image of a radiotherapy device, which is not read",
    "481.": "not an image (RT record)",
    "77.1.5.3": "not an image (stereometric relationship)",
    "77.1.6": "a whole-slide microscopy image, which is not read",
    "77.1.8.": "a whole-slide microscopy image, which is not read",
    "77.1.9": "a whole-slide microscopy image, which is not read",
    "77.1.1.1": "a film without geometry",
    "77.1.2.1": "a film without geometry",
    "77.1.4.1": "a film without geometry",
}
_WHOLE = {
    "1.2.840.10008.1.3.10": "not an image (DICOMDIR)",
    "1.2.840.10008.5.1.4.38.1": "not an image (display)",
    "1.2.840.10008.5.1.4.39.1": "not an image (look-up table)",
}
_REASONS = {**{_STORAGE + tail: reason for tail, reason in _NOT_IMAGES.items()}, **_WHOLE}

FLAT = frozenset(("CR", "DX", "DR", "MG", "RG", "IO", "PX", "XA", "RF"))
"""Modalities of projections: one file is one flat image, wherever it says that it lies."""
NEEDS_PLACE = frozenset(("CT", "MR", "PT", "NM"))
"""Modalities of slices: without position and orientation they are refused, never taken for flat images."""

_WORDS = {
    **dict.fromkeys(FLAT, "X-ray"),
    "CT": "CT", "MR": "MR", "PT": "PET", "NM": "NM", "US": "US", "IVUS": "US", "OP": "photograph", "XC": "photograph",
    "DMS": "photograph", "ES": "endoscopy", "GM": "microscopy", "SM": "microscopy", "OCT": "OCT", "OPT": "OCT",
}  # fmt: skip


def modality_word(code: str) -> str:
    """The cards' word for a Modality; "other" for one that is not in the table, so that no header value gets out."""
    return _WORDS.get(code.strip().upper(), "other" if code.strip() else "")


def require_image(data: Dataset) -> None:
    """Refuses what is no image, localizers and mosaics.

    Raises:
        Refused: with the kind of object that it is.
    """
    uid = text(data, "SOPClassUID") or text(data.file_meta, "MediaStorageSOPClassUID")
    if not uid:
        raise Refused("no SOP class, so it is not known what it is")
    reason = _REASONS.get(uid)
    family = uid
    while reason is None and "." in family:
        family = family.rpartition(".")[0]
        reason = _REASONS.get(family + ".")
    if reason is not None:
        raise Refused(reason, uid)
    kinds = text(data, "ImageType").upper().split("\\")
    if "LOCALIZER" in kinds or "SCOUT" in kinds:
        raise Refused("a localizer")
    if "MOSAIC" in kinds:
        raise Refused("a mosaic")
