"""Small files of every format that is indexed, and what indexing says of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from dpeq.data.index.check import Check, check
from dpeq.data.index.workers import K
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Header, Refused, Source

__all__ = ["Inline", "rejects", "table", "unmatched", "write_nifti", "write_png", "write_slice", "write_table"]


def write_slice(path: Path, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    """One CT slice of ``pixels``; ``elements`` override or, with None, leave out header entries.

    ``pixels`` are ``[rows, columns]`` or, in colour, ``[rows, columns, 3]``; their bytes are written as they are, so
    for another ``syntax`` the caller passes ``PixelData``.
    """
    data = Dataset()
    bits = 8 * pixels.itemsize
    defaults: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"2.25.{abs(hash(str(path))) % 10**12}",
        "PatientID": "P1",
        "PatientName": "Doe^Jane",
        "PatientBirthDate": "19700101",
        "StudyInstanceUID": "2.25.1",
        "SeriesInstanceUID": "2.25.2",
        "Modality": "CT",
        "ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0.0, 0, 0],
        "PixelSpacing": [2.0, 3.0],
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "PlanarConfiguration": None if pixels.ndim == 2 else 0,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "RescaleSlope": 1.0,
        "RescaleIntercept": -1024.0,
        "PixelData": pixels.tobytes(),
    }
    with disable_value_validation():  # tests write values that no file should have
        for keyword, value in {**defaults, **elements}.items():
            if value is not None:
                setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = str(elements.get("SOPClassUID") or CTImageStorage)
    data.file_meta.MediaStorageSOPInstanceUID = str(defaults["SOPInstanceUID"])
    data.file_meta.TransferSyntaxUID = UID(syntax)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        data["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    with disable_value_validation():
        data.save_as(path, enforce_file_format=True)
    return path


def write_nifti(
    path: Path, seed: int = 0, shape: tuple[int, ...] = (4, 5, 6), affine: np.ndarray | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 99, shape).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1]) if affine is None else affine).to_filename(path)
    return path


def write_png(path: Path, seed: int = 0, *, colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 6, 3) if colour else (5, 6)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def write_table(path: Path, columns: str, rows: Iterable[str]) -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


def table(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [tuple(row) for row in csv.reader(handle)][1:]


def rejects(manifest: Path) -> dict[str, str]:
    """Reasons by path."""
    return {path: reason for path, reason, _ in table(manifest.with_name(f"{manifest.stem}.rejects.csv"))}


def unmatched(manifest: Path) -> list[tuple[str, ...]]:
    return table(manifest.with_name(f"{manifest.stem}.unmatched.csv"))


class Inline:
    """Stands in for the worker processes where a test makes many small indexes of harmless files."""

    def __init__(self, root: Path, count: int) -> None:
        self._root = root

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def examine(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[str, Header | Refused]]:
        for path in (path for batch in batches for path in batch):
            yield path, _or_refused(lambda path=path: examine(self._root / path))

    def check(self, batches: Iterable[Sequence[tuple[K, Sequence[Source]]]]) -> Iterator[tuple[K, Check | Refused]]:
        for key, sources in (pair for batch in batches for pair in batch):
            yield key, _or_refused(lambda sources=sources: check(read, self._root, sources))


def _or_refused(call: Callable[[], object]) -> object:
    try:
        return call()
    except Refused as refused:
        return refused
