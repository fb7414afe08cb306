"""What indexing came to, in numbers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dpeq.data.index.groups import GroupCounts
from dpeq.data.manifest import Manifest
from dpeq.errors import DataError

__all__ = ["IndexSummary", "NoManifest"]


@dataclass(frozen=True)
class IndexSummary:
    """What became of every file: ``files_seen == files_accepted + files_rejected``.

    The private lists beside the manifest say the same by name: ``rejects.csv`` has a reason for each rejected file,
    ``unmatched.csv`` whatever is counted in ``unmatched``.

    Attributes:
        files_seen: files, and whatever else is in the tree and is no readable folder.
        rejects: rejected files by reason.
        images_left_out: images of accepted files that lack a label or a patient.
        unmatched: entries of the list of unmatched by ``(kind, reason)``.
        identifying: in how many files each identifying attribute of DICOM was present and not empty.
        dicom_headers: how many files have a DICOM header.
        masks: images that have a mask, or None where no masks were asked for.
        under_two_patients: images whose voxels occur under another patient too.
        groups: what is known of groups, of the images that are evaluated on.
        twice_under_one: images whose voxels occur twice under one patient, who is protected all the same, but not with
            the image as the unit.
    """

    manifest: Manifest
    files_seen: int
    files_accepted: int
    rejects: Counter[str]
    images_left_out: int
    unmatched: Counter[tuple[str, str]]
    identifying: Counter[str]
    dicom_headers: int
    masks: int | None
    under_two_patients: int
    twice_under_one: int
    groups: GroupCounts
    files_rejected: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files_rejected", sum(self.rejects.values()))

    @property
    def burned_in(self) -> int:
        """Images whose header says that text is burned into them."""
        return sum(record.burned_in for record in self.manifest.records)

    @property
    def rows_without_images(self) -> int:
        return sum(count for (kind, _), count in self.unmatched.items() if kind == "row")


class NoManifest(DataError):
    """What can be used makes no manifest; ``summary`` says what became of every file, its manifest was not written."""

    def __init__(self, text: str, summary: IndexSummary) -> None:
        super().__init__(text)
        self.summary = summary
