"""Small DICOM files of which anything can be wrong."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 2000, (8, 9)).astype("<u2")
MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"

_DEFAULTS: dict[str, object] = {
    "SOPClassUID": MR,
    "PatientID": "P1",
    "PatientName": "Doe^Jane",
    "Modality": "MR",
    "ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0],
    "ImagePositionPatient": [0.0, 0, 0],
    "PixelSpacing": [2.0, 3.0],
    "SliceThickness": 4.0,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelRepresentation": 0,
}


_study = ["2.25.1"]


def begin(name: str) -> None:
    """What is written from now on is of a study of its own, so that many kinds can lie in one archive."""
    _study[0] = f"2.25.{zlib.crc32(name.encode())}"


def study(number: int = 0) -> str:
    """UID of a study, other ones for other numbers."""
    return f"{_study[0]}.{number}" if number else _study[0]


def dataset(pixels: np.ndarray = PIXELS, **elements: object) -> Dataset:
    """One MR slice of ``pixels``; ``elements`` override or, with None, leave out entries."""
    bits = 8 * pixels.itemsize
    sizes = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelData": pixels.tobytes(),
    }
    ids = {"StudyInstanceUID": study(), "SeriesInstanceUID": f"{study()}.99"}
    data = Dataset()
    with loose():
        for keyword, value in {**_DEFAULTS, **ids, **sizes, **elements}.items():
            if value is not None:
                setattr(data, keyword, value)
    return data


def dicom(path: Path, data: Dataset | None = None, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    """A whole file; its instance id comes from its name."""
    data = dataset(**elements) if data is None else data
    if "SOPInstanceUID" not in data:
        data.SOPInstanceUID = "2.25." + str(int.from_bytes(path.name.encode()[-12:], "big"))
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.get("SOPClassUID") or MR
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    known = pydicom.uid.UID(syntax)
    implicit = known.is_implicit_VR if known.is_transfer_syntax and not known.is_private else False
    little = known.is_little_endian if known.is_transfer_syntax and not known.is_private else True
    with loose():
        out = io.BytesIO()
        pydicom.dcmwrite(out, data, implicit_vr=implicit, little_endian=little, force_encoding=True)
    content = out.getvalue()
    # pydicom writes the preamble only when it also checks the whole; here nothing shall be checked.
    path.write_bytes(content if content[128:132] == b"DICM" else bytes(128) + b"DICM" + content)
    return path


class loose:
    """pydicom neither checks nor warns."""

    def __enter__(self) -> None:
        self.catcher = warnings.catch_warnings()
        self.catcher.__enter__()
        warnings.simplefilter("ignore")
        self.level = config.logger.level
        config.logger.setLevel(logging.CRITICAL)
        self.mode = config.settings.writing_validation_mode
        config.settings.writing_validation_mode = config.IGNORE

    def __exit__(self, *_: object) -> None:
        config.settings.writing_validation_mode = self.mode
        config.logger.setLevel(self.level)
        self.catcher.__exit__(None, None, None)


def compressed(path: Path, codestream: bytes, syntax: str, rows: int = 8, columns: int = 9, **elements: object) -> Path:
    """A file whose only frame is ``codestream``, whatever that is."""
    data = dataset(PIXELS, **{"Rows": rows, "Columns": columns, **elements})
    data["PixelData"].VR = "OB"
    data.PixelData = encapsulate([codestream])
    data["PixelData"].is_undefined_length = True
    return dicom(path, data, syntax)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """One explicit little-endian element as it stands in a file."""
    head = struct.pack("<HH", group, number) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def inserted(path: Path, extra: bytes) -> Path:
    """The file with raw elements before its pixels."""
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[:at] + extra + content[at:])
    return path


def series(
    folder: Path, slices: int = 5, change: dict[int, dict[str, object]] | None = None, **elements: object
) -> None:
    """Slices at distances of 4 mm, ``0.dcm`` and on; ``change`` overrides entries of single ones."""
    for index in range(slices):
        place = {"ImagePositionPatient": [10.0, 20.0, 30.0 + 4 * index], "InstanceNumber": index + 1}
        dicom(folder / f"{index}.dcm", **{**place, **elements, **(change or {}).get(index, {})})
