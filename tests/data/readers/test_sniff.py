import gzip
import io
import os
import random
import socket
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom.data
import pytest
from helpers import shared_data
from PIL import Image
from pydicom.dataset import Dataset

from dpeq.data.readers.sniff import gzip_start, kind_of, open_regular
from dpeq.data.readers.source import Refused

PIPE = "no file (a pipe, a socket or a device)"


def reason(path: Path) -> str:
    with pytest.raises(Refused) as refusal:
        kind_of(path)
    return refusal.value.reason


def written(folder: Path, content: bytes, name: str = "f") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def nifti_bytes(kind: type = nib.Nifti1Image) -> bytes:
    return kind(np.zeros((3, 4, 5), np.int16), np.eye(4)).to_bytes()


def picture_bytes(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("L", (5, 4)).save(out, kind)
    return out.getvalue()


def small_dicom(implicit: bool, little: bool) -> bytes:
    data = Dataset()
    data.SOPClassUID, data.StudyDate, data.Modality, data.PatientID = "1.2.840.10008.5.1.4.1.1.4", "20200101", "MR", "P"
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, implicit_vr=implicit, little_endian=little)
    return out.getvalue()


@pytest.mark.parametrize("name", ["scan.nii.gz", "report.txt", "IM0001", "picture.png"])
def test_names_do_not_matter(tmp_path, name):
    assert kind_of(written(tmp_path, nifti_bytes(), name)) == "nifti"
    assert kind_of(written(tmp_path, picture_bytes("PNG"), name)) == "picture"
    assert reason(written(tmp_path, b"patient,label\nA,1\n", name)) == "not an image (text)"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_nifti(tmp_path, kind, pack):
    assert kind_of(written(tmp_path, pack(nifti_bytes(kind)))) == "nifti"


def test_nifti_of_the_other_byte_order(tmp_path):
    swapped = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)).header.as_byteswapped()
    content = swapped.binaryblock + bytes(4 + 120)
    assert struct.unpack(">i", content[:4]) == (348,) or struct.unpack("<i", content[:4]) == (348,)
    assert kind_of(written(tmp_path, content)) == "nifti"


def test_pictures_and_npz(tmp_path):
    for kind in ("PNG", "JPEG"):
        assert kind_of(written(tmp_path, picture_bytes(kind))) == "picture"
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3, 4)))
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros((2, 3, 4)))
    assert kind_of(tmp_path / "a.npz") == kind_of(tmp_path / "b.npz") == "npz"


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_dicom_without_preamble(tmp_path, implicit, little):
    content = small_dicom(implicit, little)
    assert content[128:132] != b"DICM"
    assert kind_of(written(tmp_path, content)) == "dicom"


def test_dicom_of_pydicom_and_of_the_archives(tmp_path):
    """Every DICOM file that pydicom carries for its tests, and none of the rest."""
    folder = Path(pydicom.data.__file__).parent / "test_files"
    others = {"README.txt", "README", "crayons.icc", "rtplan.dump", "rtstruct.dump", "test1.json", "test_PN.json"}
    others |= {"zipMR.gz"}  # DICOM inside of gzip
    others |= {"no_meta.dcm"}  # begins with one byte that belongs to no element
    refused = set()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        try:
            assert kind_of(path) == "dicom", path
        except Refused:
            refused.add(path.name)
    assert refused <= others
    files = [p for p in shared_data("dicom").rglob("*") if p.is_file()]
    for path in files:
        if path.suffix == ".dcm":
            assert kind_of(path) == "dicom"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (bytes(1000), "not an image (zeros)"),
        ("Größe;Länge\n".encode("latin-1"), "not an image (text)"),
        ("text".encode("utf-16"), "not an image (text)"),
        (b"II*\0" + bytes(100), "a format that is not read (TIFF)"),
        (picture_bytes("BMP"), "a format that is not read (BMP)"),
        (picture_bytes("GIF"), "a format that is not read (GIF)"),
        (picture_bytes("TIFF"), "a format that is not read (TIFF)"),
        (picture_bytes("WEBP"), "a format that is not read (WebP)"),
        (picture_bytes("JPEG2000"), "a format that is not read (JPEG 2000 outside DICOM)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "a format that is not read (HDF5)"),
        (b"NRRD0004\ntype: short\n", "a format that is not read (NRRD)"),
        (b"ObjectType = Image\nNDims = 3\n", "a format that is not read (MetaImage)"),
        (b"%PDF-1.4\n%\xe2\xe3", "not an image (PDF)"),
        (b"\x80\x04\x95\0\0\0", "not an image (pickle)"),
        (b"\0\x05\x16\x07\0\x02\0\0", "not an image (macOS metadata)"),
        (
            nib.AnalyzeImage(np.zeros((3, 4, 5), np.int16), np.eye(4)).header.binaryblock,
            "a format that is not read (Analyze)",
        ),
        (
            nib.Nifti1Pair(np.zeros((3, 4, 5), np.int16), np.eye(4)).header.binaryblock,
            "half of a NIfTI pair (hdr and img); one file with both is read",
        ),
        (gzip.compress(b"notes\n", mtime=0), "a gzip file that holds no NIfTI image"),
        (gzip.compress(nifti_bytes(), mtime=0)[:12], "a gzip file that holds no NIfTI image"),
        (b"\x1f\x8b\x08\0garbage that no decoder reads", "a broken gzip file"),
        (bytes(range(256)) * 3, "not an image (unknown content)"),
    ],
)
def test_others_are_refused_with_their_reason(tmp_path, content, expected):
    assert reason(written(tmp_path, content)) == expected


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert reason(tmp_path / "f") == "a zip archive that is no npz"


@pytest.mark.parametrize(
    "content",
    [
        b"\x08\0\x08\0CS\2\0A " * 9,  # the same element again and again
        b"\x08\0\x60\0CS\2\0MR" + b"\x08\0\x08\0CS\2\0A " + b"\x10\0\x20\0LO\2\0P ",  # backwards
        b"\x08\0\x08\0CS\2\0A " + b"\x08\0\x60\0XX\2\0MR" + b"\x10\0\x20\0LO\2\0P ",  # no such VR
        b"\x08\0\x08\0CS\2\0A " + b"\x08\0\x61\0CS\xff\xffM" + b"\x10\0\x20\0LO\2\0P ",  # beyond the end
        b"\x10\0\x10\0PN\2\0A " + b"\x10\0\x20\0LO\2\0P " + b"\x10\0\x40\0CS\2\0F ",  # begins too late
    ],
)
def test_almost_dicom(tmp_path, content):
    assert reason(written(tmp_path, content)) == "not an image (unknown content)"


def test_random_bytes_never_pass(tmp_path):
    """Also those that begin like an element of DICOM."""
    rng = random.Random(5)
    starts = [b"", b"\x08\0", b"\x02\0", b"\0\x08", b"\x08\0\x05\0", b"\x08\0\x08\0CS"]
    for number in range(3_000):
        start = starts[number % len(starts)]
        path = written(tmp_path, start + rng.randbytes(rng.choice([4, 20, 200])))
        with pytest.raises(Refused):
            kind_of(path)


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "to folder").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to pipe").symlink_to("pipe")
    assert reason(tmp_path / "pipe") == reason(tmp_path / "to pipe") == PIPE
    assert reason(tmp_path / "socket") == reason(Path("/dev/zero")) == PIPE
    assert reason(tmp_path / "folder") == reason(tmp_path / "to folder") == "a folder"
    assert reason(tmp_path / "dangling") == reason(tmp_path / "loop") == "a link to nothing"
    assert reason(tmp_path / "missing") == "cannot be opened"
    assert reason(tmp_path / "with\0null") == "cannot be opened"
    (tmp_path / "link").symlink_to(written(tmp_path, nifti_bytes(), "file"))
    assert kind_of(tmp_path / "link") == "nifti"


def test_a_file_that_becomes_a_pipe_is_refused_too(tmp_path, monkeypatch):
    """Between the question and the opening, the file is replaced."""
    file, pipe = written(tmp_path, b"x"), tmp_path / "pipe"
    os.mkfifo(pipe)
    opened = os.open
    monkeypatch.setattr("os.open", lambda path, flags: opened(pipe, flags))
    with pytest.raises(Refused, match="no file"):
        open_regular(file)


def test_the_system_says_no(tmp_path, monkeypatch):
    """As a file without permission does for everyone but root, who may run this."""

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(Refused) as refusal:
        kind_of(written(tmp_path, b"x", "Doe_Jane"))
    assert (refusal.value.reason, refusal.value.detail) == ("cannot be opened", "Permission denied")


def test_a_bounded_part_is_read(tmp_path):
    """A sparse file of a terabyte takes no longer than a small one."""
    path = written(tmp_path, b"\x07\x01" * 100)
    os.truncate(path, 1 << 40)
    assert reason(path) == "not an image (unknown content)"
    bomb = gzip.compress(bytes(1 << 24), 9)
    assert len(gzip_start(bomb, 544)) == 544
    assert reason(written(tmp_path, bomb)) == "a gzip file that holds no NIfTI image"
