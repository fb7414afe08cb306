"""Planes in space: regular grids, what spoils them, and volumes told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeq.data.readers.dicom_planes import Plane, affine_of, divide, order_of
from dpeq.data.readers.source import Refused, Slice

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def plane(z, number=None, keys=None, *, shape=(1, 6, 5, 1), modality="MR", x=10.0, y=20.0, **changes):
    values = {"orientation": AXIAL, "position": (x, y, float(z)), "spacing": (2.0, 3.0), "thickness": 4.0}
    values |= {"number": number, "keys": tuple((keys or {}).items())}
    return Plane(Slice(**{**values, **changes}), shape, modality)


def volumes(planes):
    """What is accepted; every plane must be in one volume or one refusal."""
    groups, refused = divide(planes)
    assert sorted([i for group in groups for i in group] + [i for i, _ in refused]) == list(range(len(planes)))
    return groups, {reason.reason for _, reason in refused}


def only_reason(planes):
    groups, reasons = volumes(planes)
    assert not groups
    assert len(reasons) == 1
    return reasons.pop()


def stack(*values, **options):
    return [plane(z, n, **options) for n, z in enumerate(values)]


def test_slices_are_ordered_by_position_alone():
    planes = [plane(z, number) for z, number in ((8, 1), (0, 3), (12, 2), (4, 9))]
    assert volumes(planes) == ([[1, 3, 0, 2]], set())


def test_the_affine_is_that_of_the_standard():
    a, b = np.cos(0.3), np.sin(0.3)
    row, column = np.array([a, b, 0]), np.array([-b * a, a * a, b])
    normal, start = np.cross(row, column), np.array([7.0, -3.0, 11.0])
    where = [start + 2.5 * k * normal for k in range(4)]
    slices = [plane(0, orientation=(*row, *column), position=tuple(p)).slice for p in where]
    affine = affine_of(slices)
    for x, y, z in ((0, 0, 0), (5, 0, 0), (0, 4, 1), (3, 2, 3)):
        lps = where[z] + x * 3.0 * row + y * 2.0 * column  # PS3.3 C.7.6.2.1.1
        np.testing.assert_allclose((affine @ [x, y, z, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
    with pytest.raises(Refused, match="not the slices that were indexed"):
        affine_of(slices[::-1])


def test_a_single_slice_is_as_thick_as_it_says():
    (one,) = [plane(5, thickness=1.5).slice]
    np.testing.assert_allclose(affine_of([one])[:3, 2], [0, 0, 1.5])
    assert volumes([plane(5)]) == ([[0]], set())


def tilted(step):
    return [plane(4 * k, k, y=20 + step * k) for k in range(5)]


IRREGULAR = {
    "slices of different sizes": [*stack(0, 4, 8), plane(12, shape=(1, 6, 4, 1))],
    "grey and coloured slices": [*stack(0, 4, 8), plane(12, shape=(3, 6, 5, 1))],
    "slices of different modalities": [*stack(0, 4, 8), plane(12, modality="PET")],
    "slices of different orientations": [*stack(0, 4, 8), plane(12, orientation=(0.0, 1, 0, 1, 0, 0))],
    "slices of different pixel spacings": [*stack(0, 4, 8), plane(12, spacing=(2.0, 3.1))],
    "slices of different kinds of values": [*stack(0, 4, 8), plane(12, keys={"RescaleType": "HU"})],
    "slices in different frames of reference": [*stack(0, 4, 8), plane(12, keys={"FrameOfReferenceUID": "1.2"})],
    "two slices at the same position": stack(0, 4, 8, 8, 12),
    "missing slices": stack(0, 4, 8, 16, 20),
    "slices at irregular distances": stack(0, 4, 8, 13, 17),
    "a stray slice far from the others": stack(0, 4, 8, 12, 411),
    "slices shifted against each other (gantry tilt)": tilted(1.0),
    "an orientation that is no pair of perpendicular unit vectors": stack(0, 4, 8, orientation=(1.0, 0, 0, 1, 0, 0)),
}


@pytest.mark.parametrize("reason", IRREGULAR)
def test_what_is_no_regular_grid_is_refused(reason):
    assert only_reason(IRREGULAR[reason]) == reason
    assert only_reason(IRREGULAR[reason][::-1]) == reason


def test_rounding_of_positions_is_no_irregularity_and_more_is():
    thin = [round(0.3333 * k, 2) for k in range(40)]
    assert volumes(stack(*thin))[0] == [list(range(40))]
    assert only_reason(stack(0, 1, 2.03, 3, 4)) == "slices at irregular distances"
    assert volumes(tilted(0.01))[0] == [list(range(5))]


def test_one_missing_slice_is_noticed_wherever_it_is():
    for gap in range(1, 9):
        assert only_reason(stack(*(z for z in range(10) if z != gap))) == "missing slices"


def several(names, count=4, number=lambda k, v: None, key=lambda k, v: None):
    """``len(names)`` volumes of ``count`` slices, slice by slice."""
    return [plane(4 * k, number(k, v), {name: value} if (value := key(k, v)) is not None else {})
            for k in range(count) for v, name in enumerate(names)]  # fmt: skip


@pytest.mark.parametrize("key", ["EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "ImageType"])
def test_an_explicit_key_tells_volumes_apart(key):
    planes = several([key] * 3, key=lambda k, v: f"{v}", number=lambda k, v: 100 * v + k)
    groups, reasons = volumes(planes)
    assert groups == [[v + 3 * k for k in range(4)] for v in range(3)]
    assert not reasons


def test_two_keys_together_tell_four_volumes_apart():
    planes = [
        plane(4 * k, None, {"EchoNumbers": f"{e}", "TemporalPositionIdentifier": f"{t}"})
        for k in range(3) for e in range(2) for t in range(2)
    ]  # fmt: skip
    groups, reasons = volumes(planes)
    assert sorted(groups) == [[v, v + 4, v + 8] for v in range(4)]
    assert not reasons


def test_without_a_key_instance_numbers_tell_volumes_apart():
    for number in (lambda k, v: 10 * v + k, lambda k, v: 2 * k + v):  # volume by volume, slice by slice
        groups, reasons = volumes(several(["", ""], number=number))
        assert groups == [[0, 2, 4, 6], [1, 3, 5, 7]]
        assert not reasons
    mixed = [plane(4 * k, 10 * v + k) for k in range(4) for v in ((0, 1) if k % 2 else (1, 0))]
    assert volumes(mixed)[0] == [[1, 2, 5, 6], [0, 3, 4, 7]]


def test_a_key_that_changes_from_slice_to_slice_splits_nothing():
    for key in ("TriggerTime", "AcquisitionNumber", "EchoTime"):
        planes = [plane(4 * k, k, {key: f"{k // 2}"}) for k in range(8)]
        assert volumes(planes) == ([list(range(8))], set())
        gap = [p for p in planes if p.slice.position[2] != 12]
        assert only_reason(gap) == "missing slices"  # and not two halves, each of them regular
        twice = several([key, key], key=lambda k, v: f"{k}", number=lambda k, v: 10 * v + k)
        assert volumes(twice)[0] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_volumes_that_cannot_be_told_apart_are_refused():
    reason = "several volumes in one series that cannot be told apart"
    assert only_reason(several(["", ""])) == reason
    assert only_reason(several(["", ""], number=lambda k, v: 7)) == reason
    assert only_reason(several(["", ""], number=lambda k, v: k if v else None)) == reason


def test_volumes_are_judged_one_by_one():
    planes = several(["EchoNumbers"] * 3, key=lambda k, v: f"{v}", number=lambda k, v: 100 * v + k)
    del planes[4]  # the second slice of the second echo
    groups, reasons = volumes(planes)
    assert len(groups) == 2
    assert reasons == {"missing slices"}
    cut = [p for p in planes if p.key("EchoNumbers") != "2" or p.slice.position[2] < 12]
    groups, reasons = volumes(cut)  # the third echo ends too early, which alone would look regular
    assert len(groups) == 1
    assert reasons == {"missing slices"}


def test_a_slice_of_one_volume_never_fills_another_ones_gap():
    """The first echo lacks a slice that the second has twice, so every position has two."""
    planes = several(["EchoNumbers"] * 2, key=lambda k, v: f"{v}", number=lambda k, v: 10 * v + k)
    planes[2] = plane(4, 99, {"EchoNumbers": "1"})
    groups, reasons = volumes(planes)
    assert groups == []
    assert reasons == {"missing slices", "two slices at the same position"}


def test_without_keys_an_incomplete_time_point_refuses_them_all():
    planes = several(["", "", ""], number=lambda k, v: 10 * v + k)
    del planes[4]
    assert only_reason(planes) == "missing slices"


def test_image_types_that_do_not_fit_each_other_are_parted():
    main = [plane(4 * k, k, {"ImageType": "ORIGINAL"}) for k in range(4)]
    other = [plane(4 * k, 9 + k, {"ImageType": "DERIVED"}, shape=(1, 3, 3, 1)) for k in range(3)]
    assert volumes([*main, *other]) == ([[0, 1, 2, 3], [4, 5, 6]], set())
    scout = plane(0, 0, {"ImageType": "DERIVED"}, orientation=(0.0, 1, 0, 0, 0, -1))
    groups, reasons = volumes([*main, scout])
    assert (groups, reasons) == ([[0, 1, 2, 3]], {"a stray slice"})


def test_three_orientations_of_one_slice_each_are_no_volumes():
    turned = [AXIAL, (0.0, 1, 0, 0, 0, -1), (1.0, 0, 0, 0, 0, -1)]
    planes = [plane(0, k, {"ImageType": f"{k}"}, orientation=turn) for k, turn in enumerate(turned)]
    assert only_reason(planes) == "slices of different orientations"


def test_time_points_of_one_slice_are_volumes_of_one_slice():
    assert volumes([plane(4, k) for k in (2, 0, 1)]) == ([[1], [2], [0]], set())


def test_the_order_of_nothing_is_asked():
    assert order_of([plane(3).slice]) == [0]


@st.composite
def series(draw):
    """A regular stack of some volumes, then a few accidents."""
    count, repeats = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    named = draw(st.booleans())
    planes = [
        plane(4 * k, 100 * v + k if draw(st.integers(0, 9)) else None, {"EchoNumbers": f"{v}"} if named else {})
        for k in range(count)
        for v in range(repeats)
    ]
    for _ in range(draw(st.integers(0, 3))):
        if not planes:
            break
        at = draw(st.integers(0, len(planes) - 1))
        accident = draw(st.integers(0, 5))
        if accident == 0:
            del planes[at]
        elif accident == 1:
            planes.append(planes[at])
        elif accident == 2:
            planes[at] = plane(draw(st.floats(-50, 50)), draw(st.integers(0, 300)))
        elif accident == 3:
            planes[at] = plane(4, 3, shape=(1, 9, 9, 1))
        elif accident == 4:
            planes[at] = plane(4, 3, {"ImageType": "X"}, orientation=(0.0, 1, 0, 0, 0, -1))
        else:
            planes[at] = plane(8, 3, {"TriggerTime": f"{at}"})
    return draw(st.permutations(planes))


@settings(max_examples=300, deadline=None)
@given(series())
def test_every_plane_ends_in_one_volume_or_one_refusal(planes):
    if not planes:
        return
    groups, _ = volumes(planes)  # which asserts just that
    for group in groups:
        parts = [planes[i] for i in group]
        affine_of([part.slice for part in parts])  # regular, in this order
        assert len({(part.shape, part.modality, part.slice.orientation) for part in parts}) == 1
        heights = [part.slice.position[2] for part in parts]
        assert len(set(heights)) == len(heights)
    assert volumes(planes[::-1])[1] == volumes(planes)[1]
