"""Multi-frame files: functional groups, volumes of frames, one volume read at a time."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate

from dpeq.data.readers import dicom_frames
from dpeq.data.readers.dicom_frames import read_enhanced
from dpeq.data.readers.dicom_header import read_header
from dpeq.data.readers.source import Refused, Source

PIXELS = np.random.default_rng(1).integers(0, 4000, (6, 5, 4)).astype("<u2")


def group(z, **groups):
    return {"PlanePositionSequence": {"ImagePositionPatient": [10.0, 20.0, float(z)]}, **groups}


def read(path, part=0):
    assert read_header(path).format == "enhanced"
    return read_enhanced(path.parent, Source("enhanced", (path.name,), part))


def refusal(path):
    with pytest.raises(Refused) as caught:
        read_header(path)
    return caught.value.reason


def test_frames_are_a_volume_in_the_order_of_their_positions(write_frames):
    heights = [8, 0, 20, 4, 16, 12]
    path = write_frames(PIXELS, [group(z) for z in heights])
    header = read_header(path)
    assert (header.shape, len(header.members), header.slice) == ((1, 4, 5, 6), 1, None)
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels[0], PIXELS[np.argsort(heights)].transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, [[-3, 0, 0, -10], [0, -2, 0, -20], [0, 0, 4, 0], [0, 0, 0, 1]])
    assert volume.geometry == "placed"


def test_a_frames_own_group_goes_before_the_shared_one(write_frames):
    turned = {"PlaneOrientationSequence": {"ImageOrientationPatient": [0.0, 1, 0, 0, 0, 1]}}
    measures = {"PixelMeasuresSequence": {"PixelSpacing": [1.0, 1.5], "SpacingBetweenSlices": 9.0}}
    groups = [
        {"PlanePositionSequence": {"ImagePositionPatient": [4.0 * k, 0.0, 0.0]}, **turned, **measures} for k in range(6)
    ]
    volume = read(write_frames(PIXELS, groups))
    np.testing.assert_allclose(volume.spacing, [1.5, 1, 4])
    np.testing.assert_allclose(volume.affine[:3, 0], [0, -1.5, 0])
    np.testing.assert_allclose(volume.affine[:3, 1], [0, 0, 1])


def test_slopes_are_those_of_each_frame(write_frames):
    slopes = [{"RescaleSlope": 0.5 + k, "RescaleIntercept": -k, "RescaleType": "US"} for k in range(6)]
    groups = [group(4 * k, PixelValueTransformationSequence=slopes[k]) for k in range(6)]
    volume = read(write_frames(PIXELS, groups))
    expected = np.stack([(0.5 + k) * frame.T - k for k, frame in enumerate(PIXELS.astype(float))], axis=-1)
    np.testing.assert_array_equal(volume.voxels[0], expected.astype(np.float32))


def test_slopes_that_all_frames_share(write_frames):
    shared = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0]},
        "PixelMeasuresSequence": {"PixelSpacing": [2.0, 3.0]},
        "PixelValueTransformationSequence": {"RescaleSlope": 2.0, "RescaleIntercept": -1000.0, "RescaleType": "HU"},
    }
    groups = [group(4 * k) for k in range(6)]
    path = write_frames(PIXELS, groups, shared, Modality="CT", SOPClassUID=uid.EnhancedCTImageStorage)
    np.testing.assert_array_equal(read(path).voxels[0], (PIXELS.astype(float) * 2 - 1000).transpose(2, 1, 0))
    assert "Hounsfield" in refusal(write_frames(PIXELS, groups, Modality="CT"))


KEYS = {
    "FrameContentSequence": [{"TemporalPositionIndex": t} for t in (1, 2)],
    "MREchoSequence": [{"EffectiveEchoTime": t} for t in (3.5, 7.0)],
    "MRDiffusionSequence": [{"DiffusionBValue": b} for b in (0.0, 1000.0)],
    "MRImageFrameTypeSequence": [{"ComplexImageComponent": name} for name in ("MAGNITUDE", "PHASE")],
    "CardiacSynchronizationSequence": [{"NominalPercentageOfCardiacPhase": p} for p in (10.0, 60.0)],
}


@pytest.mark.parametrize("sequence", KEYS)
def test_time_points_echoes_and_the_like_are_volumes(write_frames, sequence):
    groups = [group(4 * (k // 2), **{sequence: KEYS[sequence][k % 2]}) for k in range(6)]
    path = write_frames(PIXELS, groups)
    assert len(read_header(path).members) == 2
    assert read_header(path).shape == (1, 4, 5, 3)
    for part in (0, 1):
        np.testing.assert_array_equal(read(path, part).voxels[0], PIXELS[part::2].transpose(2, 1, 0))
    with pytest.raises(Refused, match="not the slices that were indexed"):
        read(path, 2)


def test_dimensions_tell_volumes_apart_and_those_that_count_positions_do_not(write_frames):
    groups = [group(4 * (k % 3), FrameContentSequence={"DimensionIndexValues": [1, 1 + k % 3, 1 + k // 3]})
              for k in range(6)]  # fmt: skip
    path = write_frames(PIXELS, groups)
    assert len(read_header(path).members) == 2
    np.testing.assert_array_equal(read(path, 1).voxels[0], PIXELS[3:].transpose(2, 1, 0))


REFUSED = {
    "missing slices": [group(z) for z in (0, 4, 8, 16, 20, 24)],
    "functional groups for another number of frames": [group(4 * k) for k in range(5)],
    "a film without geometry": [{"FrameContentSequence": {"StackID": "1"}} for _ in range(6)],
    "a localizer": [
        group(4 * k, MRImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]})
        for k in range(6)
    ],
    "slices of different orientations": [
        group(4 * k, **({} if k else {"PlaneOrientationSequence": {"ImageOrientationPatient": [0.0, 1, 0, 1, 0, 0]}}))
        for k in range(6)
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_file_is_taken_whole_or_not_at_all(write_frames, reason):
    assert refusal(write_frames(PIXELS, REFUSED[reason])) == reason


def test_parts_of_a_concatenation_are_refused(write_frames):
    path = write_frames(PIXELS, [group(4 * k) for k in range(6)], ConcatenationUID="2.25.7")
    assert refusal(path) == "one part of a concatenation, which is not read"


def test_a_slope_that_is_refused_in_one_frame_refuses_the_file(write_frames):
    groups = [group(4 * k, PixelValueTransformationSequence={"RescaleSlope": float(k), "RescaleIntercept": 0.0})
              for k in range(6)]  # fmt: skip
    assert refusal(write_frames(PIXELS, groups)) == "a rescale slope of zero"


@pytest.mark.parametrize("fragments", [1, 2])
def test_compressed_frames(write_frames, fragments):
    pixels = np.random.default_rng(2).integers(0, 4000, (3, 40, 36)).astype("<u2")
    groups = [group(4 * k) for k in range(3)]
    data = pydicom.dcmread(write_frames(pixels, groups))
    data.compress(uid.JPEGLSLossless, pixels)
    frames = list(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=3))
    stored = encapsulate(frames, fragments_per_frame=fragments, has_bot=fragments > 1)
    path = write_frames(pixels, groups, syntax=uid.JPEGLSLossless, PixelData=stored)
    np.testing.assert_array_equal(read(path).voxels[0], pixels.transpose(2, 1, 0))
    untold = encapsulate(frames, fragments_per_frame=2, has_bot=False)
    path = write_frames(pixels, groups, syntax=uid.JPEGLSLossless, PixelData=untold)
    with pytest.raises(Refused, match="compressed frames that cannot be told apart"):
        read(path)


def test_an_offset_table_that_contradicts_the_fragments_is_refused(write_frames):
    pixels = np.random.default_rng(2).integers(0, 4000, (3, 40, 36)).astype("<u2")
    groups = [group(4 * k) for k in range(3)]
    data = pydicom.dcmread(write_frames(pixels, groups))
    data.compress(uid.JPEGLSLossless, pixels)
    stored = data.PixelData
    assert stored[4] == 12  # three offsets
    swapped = stored[:8] + stored[8:12] + stored[16:20] + stored[12:16] + stored[20:]
    for table, refused in ((stored, False), (swapped, True)):
        path = write_frames(pixels, groups, syntax=uid.JPEGLSLossless, PixelData=table)
        if refused:
            with pytest.raises(Refused, match="compressed frames that cannot be told apart"):
                read(path)
        else:
            np.testing.assert_array_equal(read(path).voxels[0], pixels.transpose(2, 1, 0))


def test_more_frames_than_a_file_may_have_are_refused_by_their_header(write_frames):
    path = write_frames(PIXELS, [group(4 * k) for k in range(6)], NumberOfFrames=17, Rows=8000, Columns=8000)
    assert refusal(path) == "more pixels than one file may have"


def test_of_a_long_file_only_the_frames_that_are_asked_for_are_read(write_frames, monkeypatch):
    groups = [group(4 * (k // 2), FrameContentSequence={"TemporalPositionIndex": 1 + k % 2}) for k in range(6)]
    path = write_frames(PIXELS, groups)
    read(path)
    asked = []
    original = dicom_frames.frames_of
    monkeypatch.setattr(dicom_frames, "frames_of", lambda *args: asked.append(args[2]) or original(*args))
    monkeypatch.setattr(dicom_frames, "open_dicom", None)  # the header is not read again
    read_enhanced(path.parent, Source("enhanced", (path.name,), 1))
    assert asked == [[1, 3, 5]]


def test_a_file_that_changed_is_read_anew(write_frames):
    groups = [group(4 * k) for k in range(6)]
    read(write_frames(PIXELS, groups))
    np.testing.assert_array_equal(read(write_frames(PIXELS + 1, groups)).voxels[0], (PIXELS + 1).transpose(2, 1, 0))
    path = write_frames(PIXELS, groups, syntax=uid.DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read(path).voxels[0], PIXELS.transpose(2, 1, 0))
