"""Series of files: what becomes an image, what is refused, and that nothing is lost in between."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeq.data.readers.dicom_header import read_header
from dpeq.data.readers.dicom_series import assemble, read_dicom
from dpeq.data.readers.source import Header, Refused, Slice, Source


def headers(paths):
    return [(path.name, read_header(path)) for path in paths]


def outcome(paths):
    sources, refused = assemble(headers(paths))
    files = [file for source in sources for file in source.files] + [file for file, _ in refused]
    assert sorted(files) == sorted(path.name for path in paths)
    return sources, {reason.reason for _, reason in refused}


def test_slices_become_one_volume_whatever_their_names(write_series):
    paths = write_series(slices=6)
    (source,), reasons = outcome(paths)
    assert not reasons
    heights = [float(pydicom.dcmread(paths[0].parent / file).ImagePositionPatient[2]) for file in source.files]
    assert heights == sorted(heights)
    volume = read_dicom(paths[0].parent, source)
    assert volume.geometry == "placed"
    np.testing.assert_allclose(volume.affine, [[-3, 0, 0, -10], [0, -2, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])
    for k, file in enumerate(source.files):
        raw = pydicom.dcmread(paths[0].parent / file).pixel_array
        np.testing.assert_array_equal(volume.voxels[0, :, :, k], raw.T - 1024.0)


def test_rescale_is_applied_slice_by_slice(write_series):
    paths = write_series(change={2: {"RescaleSlope": 0.5, "RescaleIntercept": 3.0}})
    (source,), _ = outcome(paths)
    raw = pydicom.dcmread(paths[2]).pixel_array
    np.testing.assert_allclose(read_dicom(paths[0].parent, source).voxels[0, :, :, 2].T, raw * 0.5 + 3, rtol=1e-6)


IRREGULAR = {
    "slices at irregular distances": {2: {"ImagePositionPatient": [10.0, 20.0, 39.0]}},
    "two slices at the same position": {2: {"ImagePositionPatient": [10.0, 20.0, 34.0]}},
    "slices of different orientations": {1: {"ImageOrientationPatient": [0.0, 1, 0, 1, 0, 0]}},
    "slices of different pixel spacings": {3: {"PixelSpacing": [2.0, 3.1]}},
    "slices of different modalities": {3: {"Modality": "MR"}},
    "slices of different sizes": {1: {"Columns": 4, "PixelData": np.zeros((5, 4), "<u2").tobytes()}},
    "slices shifted against each other (gantry tilt)": {
        k: {"ImagePositionPatient": [10.0, 20.0 + k, 30.0 + 4 * k]} for k in range(4)
    },
}


@pytest.mark.parametrize("reason", IRREGULAR)
def test_slices_off_a_regular_grid_are_refused_and_listed(write_series, reason):
    assert outcome(write_series(change=IRREGULAR[reason])) == ([], {reason})


def test_a_copy_of_a_file_is_refused_and_the_volume_is_not(write_series):
    paths = write_series()
    copy = paths[0].with_name("ZZ")
    copy.write_bytes(paths[0].read_bytes())
    (source,), reasons = outcome([*paths, copy])
    assert reasons == {"a copy of another file"}
    assert copy.name not in source.files
    # One id for files that differ is a broken id, and no copy.
    assert outcome(write_series("same", SOPInstanceUID="2.25.3"))[1] == set()


def test_radiographs_of_one_series_are_images_of_their_own(write_series):
    paths = write_series(Modality="DX", ImagePositionPatient=None, ImageOrientationPatient=None)
    sources, reasons = outcome(paths)
    assert [source.files for source in sources] == sorted((path.name,) for path in paths)
    assert not reasons


def test_a_single_slice_is_placed_whether_it_says_how_thick_it_is_or_not(write_series):
    """Else two slices of one orientation would be turned differently."""
    (path,) = write_series(slices=1, SliceThickness=2.5)
    (source,), _ = outcome([path])
    volume = read_dicom(path.parent, source)
    assert (volume.geometry, volume.spacing) == ("placed", (3, 2, 2.5))
    (path,) = write_series("thin", slices=1)
    thin = read_dicom(path.parent, Source("dicom", (path.name,)))
    assert (thin.geometry, thin.spacing) == ("placed", (3, 2, 1))
    np.testing.assert_array_equal(thin.affine[:, [0, 1, 3]], volume.affine[:, [0, 1, 3]])


@pytest.mark.parametrize(
    ("numbers", "edge", "missing"),
    [
        ((1, 3, 5, 7), 2.0, True),  # slices lie 4 mm apart: every other one is gone
        ((7, 5, 3, 1), 2.0, True),
        ((1, 5, 9, 13), 1.0, True),
        ((1, 2, 3, 4), 2.0, False),  # a gap between slices, or one reconstruction in two
        ((1, 3, 5, 7), 4.0, False),  # numbers of two echoes, of which the other is elsewhere
        ((1, 3, 5, 7), 3.0, False),
        ((1, 3, 6, 8), 2.0, False),
        ((1, 3, 5, 7), None, False),
    ],
)
def test_every_other_slice_is_not_a_volume_of_twice_the_spacing(write_series, numbers, edge, missing):
    change = {index: {"InstanceNumber": number} for index, number in enumerate(numbers)}
    sources, reasons = outcome(write_series(change=change, SpacingBetweenSlices=edge))
    assert (len(sources), reasons) == ((0, {"missing slices"}) if missing else (1, set()))


def test_files_that_changed_since_they_were_indexed_are_refused(write_series):
    paths = write_series()
    folder = paths[0].parent
    (source,), _ = outcome(paths)
    with pytest.raises(Refused, match="not the slices that were indexed"):
        read_dicom(folder, Source("dicom", source.files[::-1]))
    other = write_series("other", change={1: {"Columns": 4, "PixelData": np.zeros((5, 4), "<u2").tobytes()}})
    (folder / source.files[1]).write_bytes(other[1].read_bytes())
    with pytest.raises(Refused, match="slices of different sizes"):
        read_dicom(folder, source)
    (folder / source.files[0]).unlink()
    with pytest.raises(Refused, match="cannot be opened"):
        read_dicom(folder, source)


def test_flat_images_are_never_stacked(write_series):
    paths = write_series(Modality="DX")
    with pytest.raises(Refused, match="not the slices that were indexed"):
        read_dicom(paths[0].parent, Source("dicom", tuple(path.name for path in paths)))


positions = st.sampled_from([(), (0.0, 0.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.0, 4.0), (0.0, 0.0, 6.0), (1.0, 0.0, 9.0)])
slices = st.builds(
    Slice,
    orientation=st.sampled_from([(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (1.0,) * 6]),
    position=positions,
    spacing=st.just((1.0, 1.0)),
    thickness=st.sampled_from([None, 2.0]),
    number=st.one_of(st.none(), st.integers(0, 5)),
    keys=st.sampled_from([(), (("EchoNumbers", "1"),), (("EchoNumbers", "2"),), (("ImageType", "A"),)]),
    instance=st.sampled_from(["", "1", "2"]),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(slices, max_size=12), st.randoms())
def test_every_file_ends_in_exactly_one_image_or_one_refusal(parts, random):
    files = [(f"{k}", Header("dicom", (1, 4, 4, 1), "MR", "p", "t", "s", slice=part)) for k, part in enumerate(parts)]
    sources, refused = assemble(files)
    seen = [file for source in sources for file in source.files] + [file for file, _ in refused]
    assert sorted(seen) == sorted(file for file, _ in files)
    random.shuffle(files)
    again, _ = assemble(files)
    assert {frozenset(source.files) for source in again} == {frozenset(source.files) for source in sources}
