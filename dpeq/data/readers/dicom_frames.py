"""Multi-frame files ("enhanced"): the volumes that their frames form, and their voxels."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset

from dpeq.data.readers.dicom_file import value
from dpeq.data.readers.dicom_pixels import Layout
from dpeq.data.readers.source import Member, Refused, Source, Volume

__all__ = ["is_enhanced", "members", "read_enhanced"]


def is_enhanced(data: Dataset) -> bool:
    """Whether each frame says where it lies (PS3.3 C.7.6.16)."""
    return bool(value(data, "PerFrameFunctionalGroupsSequence"))


def members(data: Dataset, layout: Layout) -> tuple[tuple[int, int, int, int], tuple[Member, ...]]:
    raise Refused("an enhanced multi-frame image")


def read_enhanced(root: Path, source: Source) -> Volume:
    raise Refused("an enhanced multi-frame image")
