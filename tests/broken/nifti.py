"""NIfTI files whose header or stream is broken."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from broken.case import broken

VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
AFFINE = np.diag([1.5, 2, 2.5, 1])


def content(voxels: np.ndarray = VOXELS, kind: type = nib.Nifti1Image, **fields: object) -> bytes:
    """A whole file whose header fields are then set to ``fields``, whatever they mean."""
    image = kind(voxels, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 0)
    image.header.set_xyzt_units("mm")
    whole = image.to_bytes()
    header = kind.header_class(whole[: kind.header_class.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + whole[kind.header_class.sizeof_hdr :]


def write(folder: Path, *files: bytes, packed: bool = True) -> None:
    for number, file in enumerate(files):
        (folder / f"{number}.nii").write_bytes(file)
        if packed:
            (folder / f"{number}.nii.gz").write_bytes(gzip.compress(file))


@broken("an affine that is not finite")
def nifti_affine_nan(folder: Path) -> None:
    write(folder, content(srow_y=[0, np.nan, 0, 0]), content(srow_z=[0, 0, np.inf, 0]))


@broken("an affine that is singular")
def nifti_affine_singular(folder: Path) -> None:
    write(folder, content(srow_x=[0, 0, 0, 0]), content(srow_z=[0, 0, 0, 0]))


@broken("axes that are not perpendicular")
def nifti_affine_sheared(folder: Path) -> None:
    write(folder, content(srow_y=[0.3, 2, 0, 0], pixdim=[1, np.hypot(1.5, 0.3), 2, 2.5, 0, 0, 0, 0]))


@broken("a NIfTI image without orientation")
def nifti_without_orientation(folder: Path) -> None:
    write(folder, content(sform_code=0))


@broken("two orientations (qform and sform) that contradict each other")
def nifti_of_two_orientations(folder: Path) -> None:
    write(folder, content(qform_code=1, qoffset_x=40), content(qform_code=1, quatern_b=1))


@broken("a voxel size (pixdim) that contradicts the affine")
def nifti_of_two_spacings(folder: Path) -> None:
    write(folder, content(pixdim=[1, 1, 1, 1, 1, 1, 1, 1]))


@broken("more than four dimensions")
def nifti_5d(folder: Path) -> None:
    vectors = np.zeros((5, 6, 7, 1, 3), np.float32)
    write(folder, content(vectors), content(np.zeros((2, 3, 4, 5, 6), np.uint8)))


@broken("fewer than two dimensions")
def nifti_1d(folder: Path) -> None:
    write(folder, content(np.zeros(9, np.uint8)))


@broken("an image without voxels")
def nifti_of_no_voxels(folder: Path) -> None:
    write(folder, content(dim=[3, 5, 0, 7, 1, 1, 1, 1]), content(dim=[3, -5, 6, 7, 1, 1, 1, 1]))


@broken("larger than is read")
def nifti_absurd_size(folder: Path) -> None:
    write(folder, content(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))
    write(folder, content(kind=nib.Nifti2Image, dim=[3, 10**5, 10**5, 10**9, 1, 1, 1, 1]))


@broken("shorter than its header promises")
def nifti_large_size(folder: Path) -> None:
    write(folder, content(dim=[3, 20_000, 20_000, 1, 1, 1, 1, 1]))


@broken("shorter than its header promises")
def nifti_cut_off(folder: Path) -> None:
    whole = content()
    write(folder, *(whole[:length] for length in (348, 352, 400, len(whole) - 1)))


@broken("longer than its header promises")
def nifti_with_more_behind(folder: Path) -> None:
    write(folder, content() + b"\0", content() + b"garbage" * 999)


@broken("a gzip file that is cut off")
def nifti_gzip_cut_off(folder: Path) -> None:
    whole = gzip.compress(content())
    for lost in (1, 8, 30, 100):
        (folder / f"{lost}.nii.gz").write_bytes(whole[:-lost])


@broken("a gzip file with something behind its end")
def nifti_gzip_with_garbage_behind(folder: Path) -> None:
    (folder / "a.nii.gz").write_bytes(gzip.compress(content()) + b"garbage")


@broken("a broken gzip file")
def nifti_gzip_with_a_wrong_checksum(folder: Path) -> None:
    whole = bytearray(gzip.compress(content()))
    whole[-5] ^= 1
    (folder / "a.nii.gz").write_bytes(whole)


@broken("longer than its header promises")
def nifti_gzip_bomb(folder: Path) -> None:
    """400 MB of zeros behind a small image, in 400 kB."""
    squeeze = zlib.compressobj(9, wbits=31)
    body = squeeze.compress(content()) + b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(400))
    (folder / "a.nii.gz").write_bytes(body + squeeze.flush())


@broken("complex values")
def nifti_complex(folder: Path) -> None:
    write(folder, content(VOXELS.astype(np.complex64)), content(VOXELS.astype(np.complex128)))


@broken("values of a type that is not read")
def nifti_of_odd_types(folder: Path) -> None:
    write(folder, content(datatype=1536, bitpix=128), content(datatype=1, bitpix=1), content(datatype=999))


@broken("voxels that are not finite")
def nifti_values_not_finite(folder: Path) -> None:
    values = VOXELS.astype(np.float32)
    values[2, 3, 4] = np.nan
    write(folder, content(values), content(scl_slope=1e38, scl_inter=3e38))


@broken("a rescaling that is not finite")
def nifti_rescaling_not_finite(folder: Path) -> None:
    write(folder, content(scl_slope=np.inf), content(scl_slope=2, scl_inter=np.nan))


@broken("a header that contradicts itself")
def nifti_contradicting_header(folder: Path) -> None:
    write(folder, content(vox_offset=0), content(vox_offset=np.nan), content(bitpix=8), content(dim=[9] * 8))


@broken("half of a NIfTI pair (hdr and img); one file with both is read")
def nifti_pair(folder: Path) -> None:
    (folder / "a.hdr").write_bytes(nib.Nifti1Pair(VOXELS, AFFINE).header.binaryblock)


@broken("a format that is not read (Analyze)")
def analyze(folder: Path) -> None:
    (folder / "a.hdr").write_bytes(nib.AnalyzeImage(VOXELS, AFFINE).header.binaryblock)
