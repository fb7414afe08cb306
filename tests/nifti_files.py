"""NIfTI files written by nibabel, and the reader's view of them held against nibabel's."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dpeq.data.readers.nifti import read_nifti, read_nifti_header
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Refused, Source

RNG = np.random.default_rng(1)
VOXELS = RNG.integers(-1000, 3000, (5, 6, 7)).astype(np.int16)
AFFINE = nib.affines.from_matvec(Rotation.from_rotvec([0.2, -0.4, 0.3]).as_matrix() * [1.5, 2.0, 2.5], [10, -20, 30])


def saved(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = AFFINE, kind=nib.Nifti1Image, **fields):
    """A file written by nibabel whose header fields are then set to ``fields``, whatever they mean."""
    image = kind(voxels, affine)
    if affine is not None:
        image.set_sform(affine, 1)
        image.set_qform(affine, 0)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    if fields:
        patched(path, **fields)
    return path


def patched(path: Path, **fields: object) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        content = bytearray(stream.read())
    size = struct.unpack("<i", content[:4])[0]
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    header = kind(bytes(content[:size]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    with opener(path, "wb") as stream:
        stream.write(content)
    return path


def reason(path: Path) -> str:
    with pytest.raises(Refused) as refusal:
        read(path.parent, Source("nifti", (path.name,), len(examine(path).members) - 1))
    return refusal.value.reason


def agrees_with_nibabel(path: Path) -> None:
    image = nib.load(path)
    header = read_nifti_header(path)
    expected = image.get_fdata(dtype=np.float64).astype(np.float32)
    expected = expected.reshape((*expected.shape, 1, 1)[:4])
    assert len(header.members) == expected.shape[3]
    for part in range(expected.shape[3]):
        volume = read_nifti(path, part)
        assert volume.voxels.dtype == np.float32
        assert volume.voxels.shape == header.shape == (1, *expected.shape[:3])
        assert np.array_equal(volume.voxels[0], expected[..., part])
        assert volume.voxels.flags.writeable
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
        assert volume.geometry == "placed"
