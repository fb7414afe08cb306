"""DICOM series of one slice, or one flat image, per file: volumes out of files, and voxels out of a volume's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpeq.data.readers.dicom_file import open_dicom
from dpeq.data.readers.dicom_header import plane_of
from dpeq.data.readers.dicom_pixels import frames_of, scale_of, voxels_of
from dpeq.data.readers.dicom_planes import Plane, affine_of, divide
from dpeq.data.readers.source import Header, Refused, Slice, Source, Volume

__all__ = ["assemble", "read_dicom"]


def assemble(slices: Sequence[tuple[str, Header]]) -> tuple[list[Source], list[tuple[str, Refused]]]:
    """The images of one series (of one patient and study).

    Args:
        slices: files, relative to the archive, with their headers, all of format "dicom", in any order.

    Returns:
        Images, and the files that are in none with the reason; every file is in exactly one image or one refusal.
        Files without a place in the patient are one flat image each. A file whose whole header is another one's, down
        to the instance id (SOPInstanceUID), is a copy and refused; of several, the first by name is taken.
    """
    known: set[Header] = set()
    refused: list[tuple[str, Refused]] = []
    files: list[tuple[str, Header, Slice]] = []
    for file, header in sorted(slices, key=lambda pair: pair[0]):
        where = header.slice
        if where is None:
            raise ValueError("assemble takes headers of slices alone")
        if where.instance and header in known:
            refused.append((file, Refused("a copy of another file")))
            continue
        known.add(header)
        files.append((file, header, where))
    flat = [Source("dicom", (file,)) for file, _, where in files if not where.position]
    placed = [(file, Plane(where, header.shape, header.modality)) for file, header, where in files if where.position]
    if not placed:
        return flat, refused
    volumes, reasons = divide([plane for _, plane in placed])
    refused.extend((placed[i][0], reason) for i, reason in reasons)
    return [Source("dicom", tuple(placed[i][0] for i in volume)) for volume in volumes] + flat, refused


def read_dicom(root: Path, source: Source) -> Volume:
    """Voxels and geometry of one image.

    A single slice that says neither its thickness nor its distance to the next has a third edge of 1: it lies in the
    patient all the same, and is turned like its neighbours that do say.

    Raises:
        Refused: when a file is not what it was, or its pixels cannot be decoded.
    """
    planes: list[Plane] = []
    voxels = np.empty(0, np.float32)
    for k, file in enumerate(source.files):
        with open_dicom(root / file) as opened:
            plane, layout = plane_of(opened)
            if planes and plane.shape != planes[0].shape:
                raise Refused("slices of different sizes")
            planes.append(plane)
            scale = scale_of(opened.data, layout)
            for frame in frames_of(opened, layout):
                values = voxels_of(frame, layout, scale)
                if k == 0:
                    # In the order in which files come, so that each slice is one piece; a view gives [c, x, y, z].
                    voxels = np.empty((len(values), len(source.files), *values.shape[1:]), np.float32)
                voxels[:, k] = values
    slices = [plane.slice for plane in planes]
    first = slices[0]
    volume = voxels.transpose(0, 3, 2, 1)
    if not first.position:
        if len(slices) > 1:
            raise Refused("not the slices that were indexed")
        edges = (*first.spacing[::-1], 1.0, 1.0) if first.spacing else (1.0, 1.0, 1.0, 1.0)
        return Volume(volume, np.diag(edges), "scaled" if first.spacing else "none")
    if len({plane.modality for plane in planes}) > 1:
        raise Refused("slices of different modalities")
    return Volume(volume, affine_of(slices), "placed")
