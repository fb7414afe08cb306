"""Multi-frame files ("enhanced", PS3.3 C.7.6.16): the volumes that their frames form, and their voxels.

A frame says where it lies, and what else it is, in functional groups of its own or in those that all share. Frames
are planes as slices are, so the same rules tell volumes apart; but a file is taken whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dpeq.data.readers.dicom_file import DicomFile, integer, open_dicom, reopen, text, value
from dpeq.data.readers.dicom_kinds import modality_word, require_image
from dpeq.data.readers.dicom_pixels import Layout, Scale, frames_of, layout_of, scale_of, voxels_of
from dpeq.data.readers.dicom_place import place_of
from dpeq.data.readers.dicom_planes import Plane, affine_of, divide
from dpeq.data.readers.source import Member, Refused, Slice, Source, Volume

__all__ = ["is_enhanced", "members", "read_enhanced", "volumes_of"]

# Where a frame says what tells it from others at its position: functional group, its attributes. "DimensionIndexValues"
# are one key per dimension; those that count positions change from slice to slice and so tell nothing apart.
_KEYS = (
    ("MRImageFrameTypeSequence", ("FrameType", "ComplexImageComponent")),
    ("CTImageFrameTypeSequence", ("FrameType",)),
    ("PETFrameTypeSequence", ("FrameType",)),
    ("XRay3DFrameTypeSequence", ("FrameType",)),
    ("FrameContentSequence", ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber")),
    ("MREchoSequence", ("EffectiveEchoTime",)),
    ("MRModifierSequence", ("InversionTimes",)),
    ("MRTimingAndRelatedParametersSequence", ("FlipAngle",)),
    ("MRDiffusionSequence", ("DiffusionBValue", "DiffusionDirectionality")),
    ("CardiacSynchronizationSequence", ("NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime")),
    ("CTReconstructionSequence", ("ConvolutionKernel",)),
    ("CTXRayDetailsSequence", ("KVP",)),
    ("PixelValueTransformationSequence", ("RescaleType",)),
)
_AS_IN_SLICES = {"FrameType": "ImageType"}


def is_enhanced(data: Dataset) -> bool:
    """Whether each frame says where it lies."""
    return bool(value(data, "PerFrameFunctionalGroupsSequence"))


def members(data: Dataset, layout: Layout) -> tuple[tuple[int, int, int, int], tuple[Member, ...]]:
    """The shape of each volume of a file, and one member for each.

    Raises:
        Refused: unless every frame is part of a volume that can be read.
    """
    volumes, planes = volumes_of(data, layout)
    for index in range(layout.frames):
        _scale(data, layout, index)
    for volume in volumes:
        affine_of([planes[i].slice for i in volume])
    return (layout.samples, layout.columns, layout.rows, len(volumes[0])), (Member(),) * len(volumes)


def volumes_of(data: Dataset, layout: Layout) -> tuple[list[list[int]], list[Plane]]:
    """Volumes as indices of frames in the order of slices, and all frames as planes."""
    if text(data, "ConcatenationUID") or value(data, "InConcatenationNumber") is not None:
        raise Refused("one part of a concatenation, which is not read")
    count = len(value(data, "PerFrameFunctionalGroupsSequence"))
    if count != layout.frames:
        raise Refused("functional groups for another number of frames", f"{count} for {layout.frames}")
    planes = [_plane(data, layout, index) for index in range(count)]
    volumes, refused = divide(planes)
    if refused:
        raise refused[0][1]
    if len({len(volume) for volume in volumes}) > 1:
        raise Refused("volumes of different sizes in one file")
    return volumes, planes


@dataclass(frozen=True)
class _Plan:
    """What reading any volume of a file needs of its header, which can be long."""

    opened: DicomFile
    layout: Layout
    volumes: list[list[int]]
    slices: list[Slice]
    scales: list[Scale]


@lru_cache(maxsize=4)
def _plan(path: Path, stamp: tuple[int, ...]) -> _Plan:
    """``stamp`` makes a changed file another one."""
    with open_dicom(path) as opened:
        data = opened.data
        require_image(data)
        if not is_enhanced(data):
            raise Refused("not the slices that were indexed")
        layout = layout_of(opened, integer(data, "NumberOfFrames", 1))
        volumes, planes = volumes_of(data, layout)
        scales = [_scale(data, layout, index) for index in range(layout.frames)]
        slices = [replace(plane.slice, keys=()) for plane in planes]
        return _Plan(replace(opened, data=Dataset()), layout, volumes, slices, scales)


def read_enhanced(root: Path, source: Source) -> Volume:
    """Voxels and geometry of volume ``source.part`` of a multi-frame file; other frames are not decoded.

    Raises:
        Refused: when the file is not what it was, or its pixels cannot be decoded.
    """
    path = root / source.files[0]
    try:
        status = path.stat()
    except OSError as error:
        raise Refused("cannot be opened", error.strerror) from None
    plan = _plan(path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    layout = plan.layout
    if not 0 <= source.part < len(plan.volumes):
        raise Refused("not the slices that were indexed", f"volume {source.part} of {len(plan.volumes)}")
    volume = plan.volumes[source.part]
    # The pixels of a deflated file lie behind its header, which has to be inflated again.
    again = open_dicom(path) if plan.opened.size is None else reopen(path, plan.opened)
    with again as opened:
        for k, (index, frame) in enumerate(zip(volume, frames_of(opened, layout, volume), strict=True)):
            values = voxels_of(frame, layout, plan.scales[index])
            if k == 0:
                voxels = np.empty((len(values), len(volume), *values.shape[1:]), np.float32)
            voxels[:, k] = values
    slices = [plan.slices[index] for index in volume]
    return Volume(voxels.transpose(0, 3, 2, 1), affine_of(slices), "placed")


def _plane(data: Dataset, layout: Layout, index: int) -> Plane:
    place = _group(data, index, "PlanePositionSequence")
    turn = _group(data, index, "PlaneOrientationSequence")
    measures = _group(data, index, "PixelMeasuresSequence")
    if place is None or turn is None or measures is None:
        raise Refused("a film without geometry")
    found = place_of(place, turn, measures)
    if found is None:
        raise Refused("no position, no orientation or no pixel spacing")
    keys = tuple(_keys(data, index))
    if any("LOCALIZER" in found.upper().split("\\") for name, found in keys if name == "ImageType"):
        raise Refused("a localizer")
    shape = (layout.samples, layout.columns, layout.rows, 1)
    modality = modality_word(text(data, "Modality"))
    return Plane(Slice(*found, index + 1, keys), shape, modality)


def _keys(data: Dataset, index: int) -> Iterator[tuple[str, str]]:
    for sequence, names in _KEYS:
        group = _group(data, index, sequence)
        if group is None:
            continue
        for name in names:
            if found := text(group, name):
                yield _AS_IN_SLICES.get(name, name), found
        if sequence == "MRDiffusionSequence":
            gradient = _first(group, "DiffusionGradientDirectionSequence")
            if gradient is not None:
                yield "DiffusionGradientOrientation", text(gradient, "DiffusionGradientOrientation")
        if sequence == "FrameContentSequence":
            dimensions = value(group, "DimensionIndexValues")
            if dimensions is not None:
                for k, number in enumerate(dimensions if hasattr(dimensions, "append") else [dimensions]):
                    yield f"DimensionIndexValues{k}", str(number)


def _scale(data: Dataset, layout: Layout, index: int) -> Scale:
    """Slopes may differ from frame to frame."""
    return scale_of(data, layout, _group(data, index, "PixelValueTransformationSequence"))


def _group(data: Dataset, index: int, sequence: str) -> Dataset | None:
    """A functional group of one frame, else the one that all share."""
    own = _first(value(data, "PerFrameFunctionalGroupsSequence")[index], sequence)
    if own is not None:
        return own
    shared = _first(data, "SharedFunctionalGroupsSequence")
    return None if shared is None else _first(shared, sequence)


def _first(data: Dataset, sequence: str) -> Dataset | None:
    items = value(data, sequence)
    if not items:
        return None
    if not isinstance(items[0], Dataset):
        raise Refused("a header value that cannot be read", sequence)
    return items[0]
