"""Slices and frames in space: the regular grid that they fill, or why they fill none, and several volumes told apart.

Geometry follows DICOM PS3.3 C.7.6.2.1.1: a pixel (row r, column c) lies at ``ImagePositionPatient + c * PixelSpacing[1]
* row_cosines + r * PixelSpacing[0] * column_cosines`` in the patient's left-posterior-superior (LPS) millimetres;
affines are in RAS. Planes are ordered by their positions along the normal, never by file names or instance numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dpeq.data.readers.source import Refused, Slice

__all__ = ["TRAITS", "Plane", "affine_of", "cosines_of", "divide", "order_of"]

TRAITS = {
    "FrameOfReferenceUID": "slices in different frames of reference",
    "RescaleType": "slices of different kinds of values",
    "Units": "slices of different kinds of values",
}
"""Entries of ``Slice.keys`` that never tell volumes apart, but must be the same throughout one."""

_KINDS = ("ImageType", "StackID")  # what may part slices that do not even fit each other
_SAME_PLACE = 1e-3  # mm
_ALONG = 0.01  # of the distance between slices: how far one may lie off the grid
_DIRECTION = 1e-4
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """One slice or frame: where it lies, ``shape`` (channels, x, y, z) and modality."""

    slice: Slice
    shape: tuple[int, ...]
    modality: str = ""

    def key(self, name: str) -> str:
        return dict(self.slice.keys).get(name, "")


def divide(planes: Sequence[Plane]) -> tuple[list[list[int]], list[tuple[int, Refused]]]:
    """The volumes that the planes of one series form.

    When all of them fill one regular grid they are one volume, whatever else they say of themselves. When positions
    repeat (time points, echoes, b-values, magnitude and phase), keys tell the volumes apart: those that have a value
    that covers every position, and such values for at least half of the planes (for fewer, when that leaves no volume
    at all); a key that changes from slice to slice is none. Where positions still repeat, the k-th by InstanceNumber at
    each position form volume k, if every position has as many and no number comes twice. A volume that lacks a position
    which others have is incomplete.

    Returns:
        The volumes, each as indices in the order of slices, in the order of their InstanceNumbers; and each index that
        is in none of them with its reason.
    """
    everyone = list(range(len(planes)))
    volumes: list[list[int]] = []
    refused: list[tuple[int, Refused]] = []
    for part in _parts(planes, everyone):
        reason = _mixture([planes[i] for i in part])
        if reason is None and len(part) == 1 and len(planes) > 1:
            reason = Refused("a stray slice")
        if reason is None:
            _divide_alike(planes, part, volumes, refused)
        else:
            refused.extend((i, reason) for i in part)
    volumes.sort(key=lambda group: min(_number(planes[i], i) for i in group))
    return volumes, refused


def _number(plane: Plane, index: int) -> tuple[float, int]:
    return (float("inf") if plane.slice.number is None else plane.slice.number), index


def _parts(planes: Sequence[Plane], everyone: list[int]) -> list[list[int]]:
    """Slices that do not fit each other, parted by image type or stack where that makes them fit; else all together."""
    if _mixture([planes[i] for i in everyone]) is None:
        return [everyone]
    for names in (*((name,) for name in _KINDS), _KINDS):
        groups = _grouped(planes, everyone, names)
        if all(_mixture([planes[i] for i in group]) is None for group in groups):
            # Three single slices of three kinds are not three volumes.
            return groups if any(len(group) > 1 for group in groups) else [everyone]
    return [everyone]


def _mixture(planes: Sequence[Plane]) -> Refused | None:
    """Why these can be no volume, nor several of one grid."""
    first = planes[0]
    if any(p.modality != first.modality for p in planes):
        return Refused("slices of different modalities")
    if any(p.shape[0] != first.shape[0] for p in planes):
        return Refused("grey and coloured slices")
    if any(p.shape != first.shape for p in planes):
        return Refused("slices of different sizes", sorted({p.shape for p in planes}))
    if not _alike([p.slice.orientation for p in planes], atol=_DIRECTION):
        return Refused("slices of different orientations")
    try:
        cosines_of(first.slice.orientation)
    except Refused as reason:
        return reason
    if not _alike([p.slice.spacing for p in planes], rtol=1e-4):
        return Refused("slices of different pixel spacings")
    for name, reason in TRAITS.items():
        if any(p.key(name) != first.key(name) for p in planes):
            return Refused(reason)
    return None


def _alike(rows: list[tuple[float, ...]], atol: float = 0.0, rtol: float = 0.0) -> bool:
    table = np.array(rows)
    return bool((np.abs(table - table[0]) <= atol + rtol * np.abs(table[0])).all())


def _divide_alike(
    planes: Sequence[Plane], part: list[int], volumes: list[list[int]], refused: list[tuple[int, Refused]]
) -> None:
    """Splits planes of one orientation, size and kind."""
    place = dict(zip(part, _places([planes[i].slice for i in part]), strict=True))
    places = len(set(place.values()))
    if places == len(part):
        accepted, left = _judged(planes, [part], place)
    else:
        accepted, left = _judged(planes, _grouped(planes, part, _telling(planes, part, place, 0.5)), place)
        if not accepted:  # most volumes may be incomplete, and one of them whole
            accepted, left = _judged(planes, _grouped(planes, part, _telling(planes, part, place, 0.0)), place)
    volumes.extend(accepted)
    refused.extend(left)


def _judged(
    planes: Sequence[Plane], groups: list[list[int]], place: dict[int, int]
) -> tuple[list[list[int]], list[tuple[int, Refused]]]:
    """The volumes among ``groups``, each of which is one or, told apart by InstanceNumber, several."""
    places = len(set(place.values()))
    volumes: list[list[int]] = []
    refused: list[tuple[int, Refused]] = []
    for group in groups:
        try:
            candidates = _by_number(planes, group, place)
        except Refused as reason:
            refused.extend((i, reason) for i in group)
            continue
        for volume in candidates:
            try:
                if len(volume) < places:
                    raise Refused("missing slices")
                volumes.append([volume[k] for k in order_of([planes[i].slice for i in volume])])
            except Refused as reason:
                refused.extend((i, reason) for i in volume)
    return volumes, refused


def _by_number(planes: Sequence[Plane], group: list[int], place: dict[int, int]) -> list[list[int]]:
    per_place = Counter(place[i] for i in group)
    if max(per_place.values()) == 1:
        return [group]
    if len(set(per_place.values())) > 1:
        # Few doubles are strays in a volume; many of them are volumes of which some lack slices.
        doubled = sum(count > 1 for count in per_place.values())
        if max(per_place.values()) == 2 and 2 * doubled <= len(per_place):
            raise Refused("two slices at the same position")
        raise Refused("missing slices")
    if len({n for i in group if (n := planes[i].slice.number) is not None}) < len(group):
        raise Refused("several volumes in one series that cannot be told apart")
    ranked: dict[int, list[int]] = defaultdict(list)
    for i in sorted(group, key=lambda i: _number(planes[i], i)):
        ranked[place[i]].append(i)
    return [list(volume) for volume in zip(*ranked.values(), strict=True)]


def _places(slices: Sequence[Slice]) -> list[int]:
    """Numbers of the positions along the normal, the same for slices at the same one."""
    along = np.array([s.position for s in slices]) @ _normal(slices[0])
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order], prepend=along[order[0]]) > _SAME_PLACE
    numbers = np.empty(len(slices), int)
    numbers[order] = np.cumsum(steps)
    return [int(n) for n in numbers]


def _telling(planes: Sequence[Plane], part: list[int], place: dict[int, int], share: float) -> tuple[str, ...]:
    """The keys with values that cover every position, for more than ``share`` of the planes or just that."""
    places = len(set(place.values()))
    telling = []
    for name in dict.fromkeys(name for i in part for name, _ in planes[i].slice.keys if name not in TRAITS):
        groups = _grouped(planes, part, (name,))
        whole = sum(len(group) for group in groups if len({place[i] for i in group}) == places)
        if len(groups) > 1 and whole and whole >= share * len(part):
            telling.append(name)
    return tuple(telling)


def _grouped(planes: Sequence[Plane], part: list[int], names: Sequence[str]) -> list[list[int]]:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in part:
        groups[tuple(planes[i].key(name) for name in names)].append(i)
    return list(groups.values())


def order_of(slices: Sequence[Slice]) -> list[int]:
    """Indices of slices, alike but for their positions, along their normal.

    Raises:
        Refused: unless they lie at equal distances on a line along the normal.
    """
    cosines_of(slices[0].orientation)
    if len(slices) == 1:
        return [0]
    normal = _normal(slices[0])
    where = np.array([s.position for s in slices])
    along = where @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    if float(steps.min()) <= _SAME_PLACE:
        raise Refused("two slices at the same position")
    ordered = where[order]
    if not _regular(ordered):
        raise Refused(_irregularity(ordered, steps))
    step = (ordered[-1] - ordered[0]) / (len(ordered) - 1)
    distance = float(step @ normal)
    if float(np.linalg.norm(step - distance * normal)) > _ALONG * distance:
        raise Refused("slices shifted against each other (gantry tilt)")
    if _decimated([slices[i] for i in order], distance):
        raise Refused("missing slices", "every other one, or fewer")
    return [int(i) for i in order]


def _decimated(ordered: Sequence[Slice], distance: float) -> bool:
    """Whether regular slices are every k-th of more, as both their numbers and the distance that they promise say.

    Neither alone says it: time points count on within a position, and some devices write the gap between slices where
    their distance belongs.
    """
    numbers = [s.number for s in ordered]
    if None in numbers or not ordered[0].thickness:
        return False
    steps = {abs(b - a) for a, b in pairwise(numbers)}  # type: ignore[operator]  # none is None
    k = next(iter(steps))
    return len(steps) == 1 and k > 1 and abs(distance / ordered[0].thickness / k - 1) <= 0.05


def _regular(ordered: np.ndarray) -> bool:
    step = (ordered[-1] - ordered[0]) / (len(ordered) - 1)
    line = ordered[0] + step * np.arange(len(ordered))[:, None]
    # Positions are written with a few digits: a hundredth of a millimetre is rounding, whatever the distance.
    return float(np.abs(ordered - line).max()) <= max(_ALONG * float(np.linalg.norm(step)), 0.01)


def _irregularity(ordered: np.ndarray, steps: np.ndarray) -> str:
    usual = float(np.median(steps))
    if len(steps) > 2:
        for end, rest in ((0, ordered[1:]), (-1, ordered[:-1])):
            if steps[end] > 5 * usual and _regular(rest):
                return "a stray slice far from the others"
    least = float(steps.min())
    counts = steps / least
    if np.abs(counts - np.round(counts)).max() <= 0.05 and counts.max() > 1.5:
        return "missing slices"
    return "slices at irregular distances"


def affine_of(slices: Sequence[Slice]) -> np.ndarray:
    """From voxel (x = column, y = row, z = number of the slice) to RAS mm.

    Args:
        slices: in the order of :func:`order_of`. The third column of a single one is the normal times its
            ``thickness``, or 1.

    Raises:
        Refused: when they do not fill a regular grid in this order.
    """
    first, last = slices[0], slices[-1]
    if order_of(slices) != list(range(len(slices))):
        raise Refused("not the slices that were indexed")
    row, column = cosines_of(first.orientation)
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]
    affine[:3, 1] = column * first.spacing[0]
    if len(slices) > 1:
        affine[:3, 2] = (np.array(last.position) - np.array(first.position)) / (len(slices) - 1)
    else:
        affine[:3, 2] = _normal(first) * (first.thickness or 1.0)
    affine[:3, 3] = first.position
    return _RAS @ affine


def _normal(first: Slice) -> np.ndarray:
    return np.cross(*cosines_of(first.orientation))


def cosines_of(orientation: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Directions of a row and of a column; refuses what is no pair of perpendicular unit vectors."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if abs(row @ row - 1) > 2e-3 or abs(column @ column - 1) > 2e-3 or abs(row @ column) > 1e-3:
        raise Refused("an orientation that is no pair of perpendicular unit vectors")
    return row, column
