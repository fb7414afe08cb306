"""What indexing and loading say to each other about an image: what a file is, where voxels lie, what was refused."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from dpeq.errors import DataError

__all__ = ["Format", "Header", "Member", "Refused", "Slice", "Source", "Volume"]

Format = Literal["dicom", "enhanced", "nifti", "picture", "npz"]
"""``dicom``: one slice, or one flat image, per file; ``enhanced``: DICOM multi-frame; ``picture``: PNG or JPEG."""


class Refused(DataError):
    """A file or a group of files that cannot be used exactly as it is.

    Attributes:
        reason: one of a fixed set of phrases, never anything that a file says; it may be printed and counted.
        detail: what a decoder or a header said, which may name a patient; it goes to the private list of rejects alone.
    """

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = " ".join(str(detail).split())

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return Refused, (self.reason, self.detail)  # a worker process hands it over whole


@dataclass(frozen=True)
class Volume:
    """One image in memory.

    Attributes:
        voxels: float32 ``[channels, x, y, z]``, in rescaled units (HU for CT). A flat image has one slice; its x runs
            along a row to the right and its y down the rows.
        affine: float64 ``[4, 4]``, from voxel (x, y, z) to millimetres.
        geometry: how much of ``affine`` means anything. "placed": all of it, in RAS; "scaled": only the lengths of its
            columns, the edges of a voxel in mm; "none": nothing, the format has no lengths.
    """

    voxels: np.ndarray
    affine: np.ndarray
    geometry: Literal["placed", "scaled", "none"]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Edges of a voxel along (x, y, z)."""
        return tuple(float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))


@dataclass(frozen=True)
class Slice:
    """What ordering and splitting need of one file of a DICOM series.

    Attributes:
        orientation, position, spacing: of PS3.3 C.7.6.2; empty for a flat image that has none.
        thickness: distance to the next slice that the header promises, or None.
        number: InstanceNumber, or None.
        keys: what tells time points, echoes and the like apart, by attribute keyword.
        instance: SOPInstanceUID, by which a copy of a file is known.
    """

    orientation: tuple[float, ...]
    position: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    number: int | None
    keys: tuple[tuple[str, str], ...] = ()
    instance: str = ""


@dataclass(frozen=True)
class Member:
    """One image of a file that holds whole images: the ids that the file gives it, or ""."""

    patient: str = ""
    image: str = ""


@dataclass(frozen=True)
class Header:
    """What indexing keeps of one file.

    Attributes:
        modality: in the words of the cards (CT, MR, X-ray, US, PET, ...), "" where the format does not say.
        patient, study, series: ids as the header gives them, "" where the format has none.
        shape: ``(channels, x, y, z)`` of each image.
        members: the images of a file that holds whole ones (time points of a 4D NIfTI, rows of an npz, volumes of a
            multi-frame file); empty for ``dicom``, whose images are assembled from files.
        slice: of ``dicom`` alone.
        burned_in: whether the header says that text is burned into the pixels.
        identifying: keywords of the identifying attributes that are present and not empty.
        groups: value by attribute of :data:`dpeq.data.attributes.ATTRIBUTES`, of those that the header says; the site
            is the name of an institution, which is private.
    """

    format: Format
    shape: tuple[int, int, int, int]
    modality: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    members: tuple[Member, ...] = ()
    slice: Slice | None = None
    burned_in: bool = False
    identifying: tuple[str, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Header:
        values = json.loads(text)
        part = values["slice"]
        if part is not None:
            lists = {name: tuple(part[name]) for name in ("orientation", "position", "spacing")}
            part = Slice(**{**part, **lists, "keys": tuple((k, v) for k, v in part["keys"])})
        return cls(
            **{
                **values,
                "slice": part,
                "shape": tuple(values["shape"]),
                "members": tuple(Member(**member) for member in values["members"]),
                "identifying": tuple(values["identifying"]),
                "groups": tuple((name, value) for name, value in values["groups"]),
            }
        )


@dataclass(frozen=True)
class Source:
    """Where the voxels of one image lie: ``files`` relative to the archive (of ``dicom``: in the order of slices),
    ``part`` the number of a member."""

    format: Format
    files: tuple[str, ...]
    part: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Source:
        """Raises KeyError, TypeError or ValueError for what :meth:`to_dict` did not write."""
        if values["format"] not in get_args(Format):
            raise ValueError(f"the format {values['format']!r}")
        return cls(values["format"], tuple(map(str, values["files"])), int(values["part"]))
