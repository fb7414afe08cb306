from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import shared_data
from hypothesis import given
from hypothesis import strategies as st
from nifti_files import AFFINE, RNG, VOXELS, agrees_with_nibabel, patched, reason, saved
from scipy.spatial.transform import Rotation

from dpeq.data.readers.nifti import read_nifti, read_nifti_header
from dpeq.data.readers.read import examine
from dpeq.data.readers.source import Refused

DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_number(tmp_path, dtype, suffix, kind):
    image = kind(VOXELS.astype(dtype), AFFINE, dtype=dtype)
    nib.save(image, tmp_path / f"a.{suffix}")
    agrees_with_nibabel(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_other_byte_order(tmp_path, kind):
    plain = kind(VOXELS, AFFINE)
    swapped = plain.header.as_byteswapped(">")
    image = kind(VOXELS.astype(">i2"), AFFINE, swapped)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:2] == b"\0\0"
    agrees_with_nibabel(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 7, 1), (5, 6, 7, 3), (5, 6, 1, 4), (5, 6, 7, 3, 1, 1, 1)])
def test_dimensions(tmp_path, shape, suffix):
    path = tmp_path / f"a.{suffix}"
    nib.save(nib.Nifti1Image(RNG.normal(size=shape).astype(np.float32), AFFINE), path)
    agrees_with_nibabel(path)


def test_simpleitk_agrees_on_values_and_places(tmp_path):
    """ITK keeps physical space in LPS and numpy arrays with x last."""
    path = saved(tmp_path / "a.nii.gz", scl_slope=0.25, scl_inter=-7)
    image, volume = sitk.ReadImage(str(path)), read_nifti(path)
    assert np.array_equal(volume.voxels[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32))
    for voxel in [(0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (2, 3, 4)]:
        place = np.array(image.TransformIndexToPhysicalPoint(voxel)) * [-1, -1, 1]
        np.testing.assert_allclose((volume.affine @ [*voxel, 1])[:3], place, atol=1e-4)
    np.testing.assert_allclose(volume.spacing, (1.5, 2.0, 2.5), atol=1e-5)


def test_what_simpleitk_writes(tmp_path):
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.7, 0.8, 3))
    image.SetDirection(Rotation.from_rotvec([0.1, 0.5, 2]).as_matrix().ravel().tolist())
    image.SetOrigin((-3, 4, 5))
    sitk.WriteImage(image, tmp_path / "a.nii")
    agrees_with_nibabel(tmp_path / "a.nii")
    flat = sitk.GetImageFromArray(VOXELS[0])
    sitk.WriteImage(flat, tmp_path / "b.nii")
    agrees_with_nibabel(tmp_path / "b.nii")


def test_colours(tmp_path):
    pixels = RNG.integers(0, 256, (5, 6, 7, 4)).astype(np.uint8)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    stored = np.ascontiguousarray(pixels[..., :3]).view(rgb)[..., 0]
    path = tmp_path / "rgb.nii"
    nib.save(nib.Nifti1Image(stored, AFFINE), path)
    assert read_nifti_header(path).shape == (3, 5, 6, 7)
    assert np.array_equal(read_nifti(path).voxels, pixels[..., :3].transpose(3, 0, 1, 2))
    assert reason(patched(path, scl_slope=2)) == "colours that are rescaled"
    rgba = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])
    path = tmp_path / "rgba.nii"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(pixels).view(rgba)[..., 0], AFFINE), path)
    assert reason(path) == "colours that are not opaque"
    pixels[..., 3] = 255
    nib.save(nib.Nifti1Image(np.ascontiguousarray(pixels).view(rgba)[..., 0], AFFINE), path)
    assert read_nifti_header(path).shape == (3, 5, 6, 7)
    assert np.array_equal(read_nifti(path).voxels, pixels[..., :3].transpose(3, 0, 1, 2))


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -1000), (1, 7), (-1, 0), (0, 5), (np.nan, 5), (1e-3, 0.1)])
def test_rescaling_in_double_precision(tmp_path, slope, intercept):
    path = saved(tmp_path / "a.nii", scl_slope=slope, scl_inter=intercept)
    agrees_with_nibabel(path)
    none = slope == 0 or np.isnan(slope)
    slope32, intercept32 = (1.0, 0.0) if none else (float(np.float32(slope)), float(np.float32(intercept)))
    assert np.array_equal(read_nifti(path).voxels[0], (VOXELS * slope32 + intercept32).astype(np.float32))


def test_rescaling_that_is_no_number(tmp_path):
    assert reason(saved(tmp_path / "a.nii", scl_slope=np.inf)) == "a rescaling that is not finite"
    assert reason(saved(tmp_path / "a.nii", scl_slope=1, scl_inter=np.nan)) == "a rescaling that is not finite"


@given(
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    edges=st.tuples(*[st.floats(0.1, 9)] * 3),
    mirrored=st.booleans(),
)
def test_the_qform_as_nibabel_has_it(tmp_path_factory, turn, edges, mirrored):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() * np.array([-1 if mirrored else 1, 1, 1]) * edges
    affine[:3, 3] = 5, -6, 7
    image = nib.Nifti1Image(VOXELS, affine)
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    path = tmp_path_factory.mktemp("q") / "a.nii"
    nib.save(image, path)
    # Half turns are where the three stored numbers say least (see the module).
    np.testing.assert_allclose(read_nifti(path).affine, affine, atol=2e-3 * max(edges))
    np.testing.assert_allclose(read_nifti(path).affine, nib.load(path).affine, atol=2e-3 * max(edges))


def test_a_half_turn_that_was_rounded_up_is_a_rotation(tmp_path):
    """Its three numbers have a length above 1; nifti1_io.c makes it 1."""
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(VOXELS, np.diag([1.5, -2, -2.5, 1]))
    image.set_qform(image.affine, 1)
    image.set_sform(None, 0)
    nib.save(image, path)
    np.testing.assert_allclose(read_nifti(patched(path, quatern_b=1.00004)).spacing, (1.5, 2, 2.5), rtol=1e-6)


def test_sizes_behind_the_last_dimension_mean_nothing(tmp_path):
    path = saved(tmp_path / "a.nii", dim=[3, 5, 6, 7, 9, 9, 0, -1])
    assert len(read_nifti_header(path).members) == 1
    assert np.array_equal(read_nifti(path).voxels[0], VOXELS)


def test_sform_before_qform_and_neither(tmp_path):
    path = saved(tmp_path / "a.nii")
    np.testing.assert_allclose(read_nifti(path).affine, AFFINE, atol=1e-5)
    assert reason(patched(path, sform_code=0)) == "a NIfTI image without orientation"
    assert reason(patched(path, qform_code=2, quatern_b=2)) == "a rotation (qform) that is none"
    assert reason(patched(path, quatern_b=np.nan)) == "an affine that is not finite"


def test_two_orientations(tmp_path):
    """SimpleITK would take one and nibabel the other; within half a voxel both see the same."""
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(VOXELS, AFFINE)

    def with_qform(affine: np.ndarray) -> Path:
        image.set_sform(AFFINE, 1)
        image.set_qform(affine, 1)
        nib.save(image, path)
        return path

    agrees_with_nibabel(with_qform(AFFINE))
    near, far, mirrored = AFFINE.copy(), AFFINE.copy(), AFFINE @ np.diag([-1, 1, 1, 1])
    near[0, 3] += 0.7
    far[0, 3] += 0.8
    agrees_with_nibabel(with_qform(near))
    for affine in (far, mirrored):
        assert reason(with_qform(affine)) == "two orientations (qform and sform) that contradict each other"


def test_axes_that_lean_by_rounding_alone_are_read(tmp_path):
    leaning = AFFINE.copy()
    leaning[:3, 2] += leaning[:3, 1] * 2e-4
    agrees_with_nibabel(saved(tmp_path / "a.nii", affine=leaning))


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (2, 1), (1, 1000), (3, 0.001)])
def test_units_of_length(tmp_path, unit, factor):
    path = saved(tmp_path / "a.nii", xyzt_units=unit | 8)
    expected = AFFINE.copy()
    expected[:3] *= factor
    np.testing.assert_allclose(read_nifti(path).affine, expected, rtol=1e-6)
    assert reason(patched(path, xyzt_units=5)) == "a unit of length that does not exist"


def test_a_part_that_is_not_there(tmp_path):
    path = saved(tmp_path / "a.nii")
    for part in (-1, 1):
        with pytest.raises(Refused, match="no image of that number"):
            read_nifti(path, part)


def test_one_time_point_of_a_file_that_is_not_compressed_costs_one_time_point(tmp_path):
    """Reading stops at the part: what lies behind it may be anything, and reads count few bytes."""
    path = saved(tmp_path / "a.nii", RNG.integers(0, 9, (16, 16, 16, 50)).astype(np.int16))
    expected = nib.load(path).dataobj[..., 1]
    with path.open("r+b") as stream:
        stream.seek(352 + 2 * 16**3 * 2)
        stream.write(b"\xff" * (16**3 * 2 * 48))
    assert np.array_equal(read_nifti(path, 1).voxels[0], expected)
    assert read_nifti(path, 2).voxels.max() == -1


def test_the_archives_at_hand(tmp_path):
    """Every file of the MSD hippocampus and every ground truth of the DICOM series."""
    folder = shared_data("msd_hippocampus")
    files = [*folder.rglob("*.nii.gz"), *shared_data("dicom").rglob("*.nii.gz")]
    assert len(files) > 500
    for path in files[::7]:
        if nib.load(path).header["datatype"] == 2304:
            continue
        agrees_with_nibabel(path)
    for path in files:
        assert examine(path).members
