"""Voxels and geometry against what other software made of the same files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers import shared_data

from dpeq.data.readers.dicom_frames import read_enhanced
from dpeq.data.readers.dicom_header import read_header
from dpeq.data.readers.dicom_series import assemble, read_dicom
from dpeq.data.readers.source import Source, Volume

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


ENHANCED = {"anatomical": 1, "fmri": 4, "dti": 4}


def enhanced_volumes_of(path: Path) -> list[Volume]:
    header = read_header(path)
    assert header.format == "enhanced"
    return [read_enhanced(path.parent, Source("enhanced", (path.name,), k)) for k in range(len(header.members))]


@pytest.mark.parametrize("name", ["anatomical", "fmri"])
def test_enhanced_files_agree_with_their_ground_truth(name):
    folder = shared_data("dicom", "encodings", "philips_enhanced", name, "001")
    volumes = enhanced_volumes_of(next(folder.iterdir()))
    assert len(volumes) == ENHANCED[name]
    assert volumes[0].voxels.max() < 2**11  # so 2e-4 is a rounding of float32, in which the truth was computed
    assert_agrees(volumes, truth_of(folder), 2e-4)


def test_enhanced_diffusion_agrees_with_what_is_filled_of_its_ground_truth():
    """The ground truth holds the last of four volumes in the place of the first, and zeros in the three others: the
    file was cut out of a longer scan. All four are held against a second reader below."""
    folder = shared_data("dicom", "encodings", "philips_enhanced", "dti", "001")
    volumes = enhanced_volumes_of(next(folder.iterdir()))
    truth, affine = truth_of(folder)
    assert [bool(part.any()) for part in truth] == [True, False, False, False]
    assert len(volumes) == len(truth)
    assert_agrees(volumes[3:], (truth[:1], affine), 2e-4)


@pytest.mark.parametrize("name", ENHANCED)
def test_enhanced_frames_agree_with_a_second_reader(name):
    """SimpleITK gives frames in the order of the file and rescaled; which of them lie where is read off here."""
    path = next(shared_data("dicom", "encodings", "philips_enhanced", name, "001").iterdir())
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    volumes = enhanced_volumes_of(path)
    for t, volume in enumerate(volumes):
        for k in range(volume.voxels.shape[3]):
            ras = (volume.affine @ [0, 0, k, 1])[:3]
            here = [
                i
                for i, group in enumerate(groups)
                if np.allclose(np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1], ras)
            ]
            assert len(here) == len(volumes)
            np.testing.assert_allclose(volume.voxels[0, :, :, k], frames[here[t]].T, rtol=2e-7)


def test_the_volumes_of_enhanced_diffusion_are_whole():
    """Every volume holds frames of one b-value and direction, b = 0 first (read from the file with pydicom alone)."""
    path = next(shared_data("dicom", "encodings", "philips_enhanced", "dti", "001").iterdir())
    data = pydicom.dcmread(path)
    raw = data.pixel_array.astype(np.float64) * 2.38510378510378
    told = [tuple(g.FrameContentSequence[0].DimensionIndexValues)[2:] for g in data.PerFrameFunctionalGroupsSequence]
    volumes = enhanced_volumes_of(path)
    for volume, which in zip(volumes, [(1, 65), (2, 1), (2, 2), (2, 3)], strict=True):
        frames = np.stack([frame.T for frame, found in zip(raw, told, strict=True) if found == which], axis=-1)
        np.testing.assert_allclose(volume.voxels[0], frames, rtol=2e-7)


def second_reader(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """``[channels, x, y, z]`` and RAS affine by SimpleITK, of files in the order of slices."""
    image = sitk.ReadImage([str(file) for file in files])
    voxels = sitk.GetArrayFromImage(image).astype(np.float64)
    voxels = np.moveaxis(voxels, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else voxels[None]
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return voxels.transpose(0, 3, 2, 1), np.diag([-1.0, -1, 1, 1]) @ affine


@pytest.mark.parametrize("name", [*SERIES, "../t1w_series/dicoms"])
def test_a_series_agrees_with_a_second_reader(name):
    folder = shared_data("dicom", "encodings", *name.split("/"))
    files = sorted(path.name for path in folder.iterdir())
    sources, refused = assemble([(file, read_header(folder / file)) for file in files])
    assert not refused
    for source in sources:
        ours = read_dicom(folder, source)
        voxels, affine = second_reader([folder / file for file in source.files])
        np.testing.assert_allclose(ours.voxels, voxels, rtol=2e-7, atol=1e-6)
        np.testing.assert_allclose(ours.affine, affine, atol=2e-4)
        np.testing.assert_allclose(ours.spacing, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-5)


def test_lossless_encodings_of_one_series_are_the_same_to_the_last_bit():
    root = shared_data("dicom", "encodings", "generic")
    first, *others = [
        volumes_of(root / name / "001")[0]
        for name in ("compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle")
    ]
    for other in others:
        np.testing.assert_array_equal(other.voxels, first.voxels)
        np.testing.assert_array_equal(other.affine, first.affine)


def test_a_single_slice_without_thickness_lies_where_it_lies():
    """A thickness of 1 stands where the file has none, in the ground truth too."""
    folder = shared_data("dicom", "encodings", "ge", "anatomical", "001_single_slice")
    (volume,) = volumes_of(folder)
    truth, affine = truth_of(folder)
    assert volume.geometry == "placed"
    (a, affine_a), (b, affine_b) = canonical(volume.voxels, volume.affine), canonical(truth[0], affine)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(affine_a, affine_b, atol=1e-4)


def test_time_points_come_in_the_order_of_their_instance_numbers():
    folder = shared_data("dicom", "encodings", "ge", "dti", "002")
    sources, _ = assemble([(path.name, read_header(path)) for path in folder.iterdir()])
    assert [min(source.files) for source in sources] == ["001", "101", "201", "301"]


def test_a_whole_series_is_one_volume_in_either_order_of_its_files():
    folder = shared_data("dicom", "t1w_series", "dicoms")
    headers = [(path.name, read_header(path)) for path in sorted(folder.iterdir())]
    (source,), refused = assemble(headers)
    assert not refused
    assert assemble(headers[::-1]) == ([source], [])
    assert len(source.files) == len(headers) == 128
