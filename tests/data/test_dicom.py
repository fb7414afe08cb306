from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers import shared_data

from dpeq.data.dicom import read_header, read_volume
from dpeq.errors import DataError

# The ground truth of dicom2nifti's test series, made by other software from the same files.
SERIES = [
    "anatomical/001",
    "ge/anatomical/001",
    "hitachi/anatomical/001",
    "generic/anatomical/001",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed_rle/001",
]


@pytest.mark.parametrize("name", SERIES)
def test_voxels_and_affine_agree_with_ground_truth(name):
    folder = shared_data("dicom", "encodings", *name.split("/"))
    volume = read_volume(sorted(folder.iterdir()))
    truth = nibabel.as_closest_canonical(nibabel.load(folder.with_name(f"{folder.name}_ground_truth.nii.gz")))
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, volume.affine))
    assert ours.shape == truth.shape
    np.testing.assert_allclose(ours.get_fdata(), truth.get_fdata(), atol=1e-5)
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ge/dti/001", "same position"),
        ("ge/fmri/001", "same position"),
        ("ge/anatomical/001_single_slice", "single slice"),
        ("philips_enhanced/anatomical/001", "multi-frame"),
        ("generic/rgb/001", "grey-scale"),
    ],
)
def test_series_that_are_no_single_volume_are_refused(name, reason):
    folder = shared_data("dicom", "encodings", *name.split("/"))
    with pytest.raises(DataError, match=reason):
        read_volume(sorted(folder.iterdir()))


def test_an_oblique_series_has_the_affine_of_the_standard(write_series):
    a, b = np.cos(0.3), np.sin(0.3)
    row, column = np.array([a, b, 0]), np.array([-b * a, a * a, b])
    normal, start = np.cross(row, column), np.array([7.0, -3.0, 11.0])
    change = {k: {"ImagePositionPatient": [*(start + 2.5 * k * normal)]} for k in range(4)}
    paths = write_series(change=change, ImageOrientationPatient=[*row, *column])
    volume = read_volume(paths)
    for path in paths:
        data = pydicom.dcmread(path)
        k = round(float((np.array(data.ImagePositionPatient) - start) @ normal) / 2.5)
        for r, c in ((0, 0), (4, 0), (2, 5)):
            lps = np.array(data.ImagePositionPatient) + c * 3.0 * row + r * 2.0 * column  # PS3.3 C.7.6.2.1.1
            ras = volume.affine @ [c, r, k, 1]
            np.testing.assert_allclose(ras[:3], lps * [-1, -1, 1], atol=1e-4)
            assert volume.voxels[c, r, k] == data.pixel_array[r, c] - 1024


def test_the_order_of_the_files_does_not_matter(write_series):
    paths = write_series(slices=6)
    volume, backwards = read_volume(paths), read_volume(paths[::-1])
    np.testing.assert_array_equal(volume.voxels, backwards.voxels)
    np.testing.assert_array_equal(volume.affine, backwards.affine)


def test_rescale_is_applied_slice_by_slice(write_series):
    paths = write_series(change={2: {"RescaleSlope": 0.5, "RescaleIntercept": 3.0}})
    raw = pydicom.dcmread(paths[2]).pixel_array
    np.testing.assert_allclose(read_volume(paths).voxels[:, :, 2].T, raw * 0.5 + 3, rtol=1e-6)


REFUSED = {
    "rescale slope": {"RescaleSlope": None},
    "Hounsfield": {"RescaleIntercept": None},
    "PatientID is missing": {"PatientID": " "},
    "SeriesInstanceUID is missing": {"SeriesInstanceUID": None},
    "ImagePositionPatient is missing": {"ImagePositionPatient": None},
    "PixelSpacing is missing": {"PixelSpacing": None},
    "not positive": {"PixelSpacing": [0.0, 1.0]},
    r"grey-scale image \(MONOCHROME1\)": {"PhotometricInterpretation": "MONOCHROME1"},
    "multi-frame": {"NumberOfFrames": 2},
    "perpendicular": {"ImageOrientationPatient": [1.0, 0, 0, 1, 0, 0]},
    "ImageOrientationPatient is missing": {"ImageOrientationPatient": None},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_header_that_leaves_anything_to_guess_is_refused(write_series, reason):
    with pytest.raises(DataError, match=reason):
        read_volume(write_series(**REFUSED[reason]))


IRREGULAR = {
    "irregular distances": {2: {"ImagePositionPatient": [10.0, 20.0, 39.0]}},
    "same position": {2: {"ImagePositionPatient": [10.0, 20.0, 34.0]}},
    "different orientations": {1: {"ImageOrientationPatient": [0.0, 1, 0, 1, 0, 0]}},
    "different pixel spacings": {3: {"PixelSpacing": [2.0, 3.1]}},
    "gantry tilt": {k: {"ImagePositionPatient": [10.0, 20.0 + k, 30.0 + 4 * k]} for k in range(4)},
}


@pytest.mark.parametrize("reason", IRREGULAR)
def test_slices_off_a_regular_grid_are_refused(write_series, reason):
    with pytest.raises(DataError, match=reason):
        read_volume(write_series(change=IRREGULAR[reason]))


def test_slices_of_different_sizes_are_refused(write_series):
    small = np.zeros((5, 4), "<u2")
    with pytest.raises(DataError, match="different sizes"):
        read_volume(write_series(change={1: {"Columns": 4, "PixelData": small.tobytes()}}))


def test_a_missing_slice_is_noticed(write_series):
    paths = write_series(slices=6)
    with pytest.raises(DataError, match="irregular distances"):
        read_volume(paths[:2] + paths[3:])


def test_bits_that_are_not_stored_are_no_part_of_the_value(write_series):
    """Old files keep overlays in the high bits (PS3.5 8.1.1)."""
    overlaid = np.full((5, 6), 0x7005, "<i2")
    paths = write_series(BitsStored=12, HighBit=11, PixelRepresentation=1, PixelData=overlaid.tobytes())
    np.testing.assert_array_equal(read_volume(paths).voxels, 5 - 1024)
    negative = np.full((5, 6), 0x0FFF, "<i2")  # -1 in 12 bits
    paths = write_series("b", BitsStored=12, HighBit=11, PixelRepresentation=1, PixelData=negative.tobytes())
    np.testing.assert_array_equal(read_volume(paths).voxels, -1 - 1024)


def test_truncated_pixels_and_other_files_are_refused(write_series, tmp_path):
    paths = write_series()
    paths[0].write_bytes(paths[0].read_bytes()[:-30])
    with pytest.raises(DataError, match="file 1 of 4 of the series: its pixels cannot be decoded"):
        read_volume(paths)
    other = Path(tmp_path / "IM99")
    other.write_text("no image")
    with pytest.raises(DataError, match="not a DICOM file"):
        read_header(other)
    with pytest.raises(DataError, match="unreadable"):
        read_header(tmp_path / "gone")
