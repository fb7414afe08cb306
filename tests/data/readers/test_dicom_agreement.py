"""Voxels and geometry against what other software made of the same files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import shared_data

from dpeq.data.readers.dicom_header import read_header
from dpeq.data.readers.dicom_series import assemble, read_dicom
from dpeq.data.readers.source import Volume

# Series of one slice per file, and how many volumes each holds.
SERIES = {
    "anatomical/001": 1,
    "ge/anatomical/001": 1,
    "ge/dti/001": 2,
    "ge/dti/002": 4,
    "ge/fmri/001": 2,
    "generic/anatomical/001": 1,
    "generic/anatomical/002_non_isotropic": 1,
    "generic/compressed/001": 1,
    "generic/compressed_j2k/001": 1,
    "generic/compressed_jpeg/001": 1,
    "generic/compressed_jpegls/001": 1,
    "generic/compressed_rle/001": 1,
    "generic/rgb/001": 1,
    "hitachi/anatomical/001": 1,
}


def volumes_of(folder: Path) -> list[Volume]:
    files = sorted(path.name for path in folder.iterdir())
    sources, refused = assemble([(name, read_header(folder / name)) for name in files])
    assert not refused
    assert sorted(name for source in sources for name in source.files) == files
    return [read_dicom(folder, source) for source in sources]


def truth_of(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Volumes ``[channels, x, y, z]``, in order, and their affine, as dicom2nifti wrote them."""
    image = nibabel.load(folder.with_name(f"{folder.name}_ground_truth.nii.gz"))
    voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.fields:  # colours; the fourth channel is opacity
        return [np.stack([voxels[name] for name in "RGB"])], image.affine
    return [part[None] for part in np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), -1, 0)], image.affine


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = [nibabel.as_closest_canonical(nibabel.Nifti1Image(c.astype(np.float64), affine)) for c in voxels]
    return np.stack([image.get_fdata() for image in images]), images[0].affine


def assert_agrees(ours: list[Volume], truth: tuple[list[np.ndarray], np.ndarray], atol: float) -> None:
    assert len(ours) == len(truth[0])
    for volume, voxels in zip(ours, truth[0], strict=True):
        assert volume.geometry == "placed"
        assert volume.voxels.dtype == np.float32
        (a, affine_a), (b, affine_b) = canonical(volume.voxels, volume.affine), canonical(voxels, truth[1])
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)
        np.testing.assert_allclose(affine_a, affine_b, atol=1e-4)


@pytest.mark.parametrize("name", SERIES)
def test_a_series_agrees_with_its_ground_truth(name):
    folder = shared_data("dicom", "encodings", *name.split("/"))
    volumes = volumes_of(folder)
    assert len(volumes) == SERIES[name]
    # One series has a slope; the ground truth holds its values in float64, ours are rounded to float32.
    assert_agrees(volumes, truth_of(folder), 1e-5 if "non_isotropic" in name else 0)
