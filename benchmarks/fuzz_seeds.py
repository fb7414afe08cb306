"""Small whole files of every format and transfer syntax, and ways to damage them: what the fuzzing starts from."""

from __future__ import annotations

import gzip
import io
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom.data
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedMRImageStorage, ExplicitVRLittleEndian

# Files that pydicom carries for its own tests, one or two of each transfer syntax.
_DICOM = (
    "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm",
    "SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_small_odd.dcm", "JPEGLSNearLossless_16.dcm",
)  # fmt: skip
_IDS = {"PatientID": "P", "StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.2"}
_PLACE = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0], "PixelSpacing": [1, 1]}
_NUMBERS = (0, 1, *(2**bits + less for bits in (7, 8, 15, 16, 31, 32, 63, 64) for less in (-1, 0, 1)))
_TOKENS = (
    b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xe0\x7f\x10\x00", b"\xff\xff\xff\xff", b"SQ", b"UN", b"OW", b"nan",
    b"inf", b"-1", b"1e999", b"\xff\xd8\xff", b"\xff\xd9", b"\xff\x4f\xff\x51", b"\xff\x51", b"IDAT", b"PK\x03\x04",
    b"PK\x01\x02", b"'shape': (", bytes(16), b"\xff" * 16, b"\x1f\x8b",
)  # fmt: skip


def seeds() -> dict[str, bytes]:
    """Whole files by name; the readers accept each of them."""
    found = {f"{kind}:{name}": content for kind, many in _BY_KIND.items() for name, content in many().items()}
    return dict(sorted(found.items()))


def damaged(content: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """One to eight changes: bits, bytes, numbers of 1 to 8 bytes, tokens, cuts, repeats, pieces of other files."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        # Half of all changes near the start, where headers are.
        reach = len(data) if dice.random() < 0.5 else min(len(data), 800)
        at, kind = dice.randrange(reach + 1), dice.randrange(9)
        size = dice.choice((1, 2, 4, 8, 30, 200))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at : at + size] = dice.randbytes(size)
        elif kind == 2:
            width, order = dice.choice((1, 2, 4, 8)), dice.choice(("little", "big"))
            number = dice.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            data[at : at + width] = number.to_bytes(width, order)
        elif kind == 3:
            token = dice.choice(_TOKENS)
            data[at : at + (len(token) if dice.random() < 0.7 else 0)] = token
        elif kind == 4:
            del data[at : at + size]
        elif kind == 5:
            data[at:at] = dice.randbytes(size)
        elif kind == 6:
            data[at:at] = data[at : at + size] * dice.choice((1, 2, 50))
        elif kind == 7:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            data[at : at + size] = other[start : start + size]
        else:
            del data[at:]
    return bytes(data)


def _dicom() -> dict[str, bytes]:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    files = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _DICOM:
            data = pydicom.dcmread(folder / name)
            for keyword, value in {**_IDS, **({} if data.get("Modality") == "OT" else _PLACE)}.items():
                if not data.get(keyword):
                    setattr(data, keyword, value)
            out = io.BytesIO()
            data.save_as(out)
            files[name] = out.getvalue()
        small = pydicom.dcmread(folder / "MR_small.dcm")
        files["deflated"] = _saved(small, DeflatedExplicitVRLittleEndian)
        files["no preamble"] = files["MR_small.dcm"][files["MR_small.dcm"].index(b"\x08\x00\x08\x00CS") :]
        files["enhanced"] = _saved(_enhanced(), ExplicitVRLittleEndian)
    return files


def _saved(data: Dataset, syntax: str) -> bytes:
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _enhanced() -> Dataset:
    """Three frames with functional groups (PS3.3 C.7.6.16)."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    pixels = np.arange(3 * 4 * 5, dtype="<u2")
    rest = {
        "SOPClassUID": EnhancedMRImageStorage, "SOPInstanceUID": "2.25.3", "Modality": "MR", **_IDS,
        "NumberOfFrames": 3, "Rows": 4, "Columns": 5, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": 0, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.tobytes(),
    }  # fmt: skip
    for keyword, value in rest.items():
        setattr(data, keyword, value)
    turn, measures, shared = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [1, 1], 2
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([turn]), Items([measures])
    data.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for index in range(3):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * index]
        frame.PlanePositionSequence = Items([place])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    return data


def _nifti() -> dict[str, bytes]:
    voxels = np.arange(4 * 5 * 6 * 2, dtype=np.int16).reshape(4, 5, 6, 2)
    affine = np.diag([1.5, 2, 3, 1])
    files = {}
    for name, kind in (("1", nib.Nifti1Image), ("2", nib.Nifti2Image)):
        image = kind(voxels, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_slope_inter(0.5, 1)
        files[name] = image.to_bytes()
    files["big endian"] = nib.Nifti1Image(voxels, affine, nib.Nifti1Header(endianness=">")).to_bytes()
    files["compressed"] = gzip.compress(files["1"], mtime=0)
    return files


def _pictures() -> dict[str, bytes]:
    grey = Image.fromarray(np.arange(30 * 20, dtype=np.uint16).astype(np.uint8).reshape(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "grey png": (grey, "PNG", {}),
        "16 bit png": (Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG", {}),
        "opaque png": (grey.convert("RGBA"), "PNG", {}),
        "palette png": (grey.convert("P"), "PNG", {}),
        "jpeg": (grey.convert("RGB"), "JPEG", {"exif": exif.tobytes()}),
        "progressive jpeg": (grey, "JPEG", {"progressive": True}),
    }
    files = {}
    for name, (image, kind, options) in images.items():
        out = io.BytesIO()
        image.save(out, kind, **options)
        files[name] = out.getvalue()
    return files


def _arrays() -> dict[str, bytes]:
    images = np.arange(3 * 5 * 6, dtype=np.uint8).reshape(3, 5, 6)
    files = {}
    for name, save in (("stored", np.savez), ("compressed", np.savez_compressed)):
        out = io.BytesIO()
        save(out, images=images, patient_id=np.array(["A", "B", "A"]), image_id=np.arange(3))
        files[name] = out.getvalue()
    return files


_BY_KIND = {"dicom": _dicom, "nifti": _nifti, "picture": _pictures, "npz": _arrays}
