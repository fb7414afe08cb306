"""NIfTI files that are refused: by their header, their geometry, their size or their stream."""

from __future__ import annotations

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
from nifti_files import AFFINE, RNG, VOXELS, agrees_with_nibabel, patched, reason, saved

from dpeq.data.readers import nifti
from dpeq.data.readers.nifti import read_nifti
from dpeq.data.readers.read import examine
from dpeq.data.readers.source import Refused


def test_geometry_that_is_none(tmp_path):
    path = tmp_path / "a.nii"

    def of(affine: np.ndarray, **fields: object) -> str:
        saved(path, affine=AFFINE)
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        rows = {f"srow_{axis}": affine[row] for row, axis in enumerate("xyz")}
        return reason(patched(path, **{"pixdim": [1, *edges, 0, 0, 0, 0], **rows, **fields}))

    broken = AFFINE.copy()
    broken[1, 1] = np.nan
    assert of(broken) == "an affine that is not finite"
    broken[1, 1] = np.inf
    assert of(broken) == "an affine that is not finite"
    assert of(AFFINE @ np.diag([1, 0, 1, 1])) == "an affine that is singular"
    flat = AFFINE.copy()
    flat[:3, 2] = flat[:3, 0] * 1.3
    assert of(flat) == "an affine that is singular"
    sheared = AFFINE.copy()
    sheared[:3, 2] += sheared[:3, 1] * 0.2
    assert of(sheared) == "axes that are not perpendicular"
    for factor in (1e6, 1e-6):
        assert of(AFFINE * [[factor], [factor], [factor], [1]]) == "voxels of an absurd size"
    contradiction = "a voxel size (pixdim) that contradicts the affine"
    assert of(AFFINE, pixdim=[1, 1.5, 2.01, 2.5, 0, 0, 0, 0]) == contradiction
    assert of(AFFINE, pixdim=[1, 1.5, -2, 2.5, 0, 0, 0, 0]) == contradiction
    assert of(AFFINE, pixdim=[1, 1.5, np.nan, 2.5, 0, 0, 0, 0]) == contradiction


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dim": [0, 5, 6, 7, 1, 1, 1, 1]}, "a header that contradicts itself"),
        ({"dim": [8, 5, 6, 7, 1, 1, 1, 1]}, "a header that contradicts itself"),
        ({"dim": [3, 5, -6, 7, 1, 1, 1, 1]}, "an image without voxels"),
        ({"dim": [3, 5, 0, 7, 1, 1, 1, 1]}, "an image without voxels"),
        ({"dim": [1, 210, 1, 1, 1, 1, 1, 1]}, "fewer than two dimensions"),
        ({"dim": [3, 210, 1, 1, 1, 1, 1, 1]}, "fewer than two dimensions"),
        ({"dim": [5, 5, 6, 1, 1, 7, 1, 1]}, "more than four dimensions"),
        ({"dim": [3, 5, 6, 8, 1, 1, 1, 1]}, "shorter than its header promises"),
        ({"dim": [3, 5, 6, 6, 1, 1, 1, 1]}, "longer than its header promises"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "larger than is read"),
        ({"dim": [4, 3200, 3200, 7, 32767, 1, 1, 1]}, "shorter than its header promises"),
        ({"datatype": 32, "bitpix": 64}, "complex values"),
        ({"datatype": 1792, "bitpix": 128}, "complex values"),
        ({"datatype": 1536, "bitpix": 128}, "values of a type that is not read"),
        ({"datatype": 1, "bitpix": 1}, "values of a type that is not read"),
        ({"datatype": 0, "bitpix": 0}, "values of a type that is not read"),
        ({"qform_code": 257}, "a kind of orientation that does not exist"),
        ({"sform_code": -1}, "a kind of orientation that does not exist"),
        ({"bitpix": 8}, "a header that contradicts itself"),
        ({"vox_offset": 0}, "a header that contradicts itself"),
        ({"vox_offset": np.nan}, "a header that contradicts itself"),
        ({"vox_offset": 352.5}, "a header that contradicts itself"),
        ({"vox_offset": 368}, "shorter than its header promises"),
    ],
)
def test_headers_that_lie(tmp_path, fields, expected):
    assert reason(saved(tmp_path / "a.nii", **fields)) == expected


def test_an_absurd_nifti2(tmp_path):
    path = saved(tmp_path / "a.nii", kind=nib.Nifti2Image, dim=[3, 1 << 40, 1 << 40, 1 << 40, 1, 1, 1, 1])
    assert reason(path) == "larger than is read"
    assert reason(patched(path, dim=[4, 1, 2, 1, 1 << 20, 1, 1, 1])) == "more images than are read from one file"
    assert reason(patched(path, dim=[3, 5, 6, 7, 1, 1, 1, 1], srow_x=[1e300, 1e300, 0, 0])) == (
        "a voxel size (pixdim) that contradicts the affine"
    )


def test_values_that_are_not_finite(tmp_path):
    voxels = VOXELS.astype(np.float64)
    voxels[1, 2, 3] = np.nan
    assert reason(saved(tmp_path / "a.nii", voxels)) == "voxels that are not finite"
    voxels[1, 2, 3] = 1e39  # finite in float64, not in float32
    assert reason(saved(tmp_path / "a.nii", voxels)) == "voxels that are not finite"


def test_truncated_at_every_place(tmp_path):
    whole = saved(tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii"
    for length in [*range(0, 353, 8), 400, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert reason(path)
    for length in (348, 351, 352, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert reason(path) == "shorter than its header promises"
    path.write_bytes(whole + b"\0")
    assert reason(path) == "longer than its header promises"


class TestCompressed:
    def test_several_members_are_one_stream(self, tmp_path):
        """RFC 1952 section 2.2; bgzip and parallel compressors write such files."""
        whole = saved(tmp_path / "a.nii").read_bytes()
        path = tmp_path / "b.nii.gz"
        path.write_bytes(gzip.compress(whole[:300]) + gzip.compress(b"") + gzip.compress(whole[300:]))
        agrees_with_nibabel(path)

    def test_time_points_are_decoded_once(self, tmp_path, monkeypatch):
        """All of one file cost one pass; a changed file is seen, and nobody writes into what is kept."""
        calls, pieces = [], nifti._pieces
        monkeypatch.setattr(nifti, "_pieces", lambda stream: calls.append(stream) or pieces(stream))
        path, voxels = tmp_path / "a.nii.gz", RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
        for content in (voxels, -voxels):
            nib.save(nib.Nifti1Image(content, AFFINE), path)
            calls.clear()
            for part in (5, 0, 1, 5, 3):
                volume = read_nifti(path, part)
                assert np.array_equal(volume.voxels[0], content[..., part])
                volume.voxels[:] = 7
            assert len(calls) == 1
        monkeypatch.setattr(nifti, "_MOST_KEPT", 100)
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)
        for part in range(6):
            assert np.array_equal(read_nifti(path, part).voxels[0], voxels[..., part])
        assert len(calls) == 7

    def test_cut_off_anywhere(self, tmp_path):
        path = saved(tmp_path / "a.nii.gz")
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert reason(path) in (
                "an empty file",
                "not an image (unknown content)",
                "a gzip file that holds no NIfTI image",
                "a gzip file that is cut off",
                "shorter than its header promises",
            )
        path.write_bytes(whole[:-1])
        assert reason(path) == "a gzip file that is cut off"

    def test_something_behind(self, tmp_path):
        path = saved(tmp_path / "a.nii.gz")
        whole = path.read_bytes()
        for extra, expected in (
            (b"garbage", "a gzip file with something behind its end"),
            (b"\0", "a gzip file with something behind its end"),
            (b"\x1fgarbage", "a broken gzip file"),
            (gzip.compress(b"\0"), "longer than its header promises"),
            (gzip.compress(b"")[:-3], "a gzip file that is cut off"),
        ):
            path.write_bytes(whole + extra)
            assert reason(path) == expected

    def test_a_wrong_checksum(self, tmp_path):
        path = saved(tmp_path / "a.nii.gz")
        whole = bytearray(path.read_bytes())
        whole[-6] ^= 1
        path.write_bytes(whole)
        assert reason(path) == "a broken gzip file"

    def test_a_stream_of_another_size(self, tmp_path):
        path = saved(tmp_path / "a.nii.gz")
        assert reason(patched(path, dim=[3, 5, 6, 8, 1, 1, 1, 1])) == "shorter than its header promises"
        assert reason(patched(path, dim=[3, 5, 6, 6, 1, 1, 1, 1])) == "longer than its header promises"

    def test_bombs(self, tmp_path):
        """A small file whose header promises much is refused unread, one that holds much is read no further."""
        path = saved(tmp_path / "a.nii.gz", dim=[3, 20000, 20000, 1, 1, 1, 1, 1])
        with pytest.raises(Refused, match="shorter than its header promises"):
            examine(path)
        with pytest.raises(Refused, match="larger than is read"):
            examine(patched(path, dim=[4, 512, 512, 512, 32, 1, 1, 1]))

    def test_a_stream_that_does_not_end_is_left_early(self, tmp_path, monkeypatch):
        header = gzip.decompress(saved(tmp_path / "a.nii.gz").read_bytes())
        squeeze = zlib.compressobj(9, wbits=31)
        body = squeeze.compress(header) + b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(200))
        (tmp_path / "a.nii.gz").write_bytes(body + squeeze.flush())
        decoded, pieces = [], nifti._pieces

        def counted(stream):
            for piece in pieces(stream):
                decoded.append(len(piece))
                yield piece

        monkeypatch.setattr(nifti, "_pieces", counted)
        assert reason(tmp_path / "a.nii.gz") == "longer than its header promises"
        assert sum(decoded) < 1 << 20
