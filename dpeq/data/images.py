"""Images in memory, with their labels and the privacy unit that owns each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dpeq.errors import DataError

__all__ = ["ImageSet"]


@dataclass(frozen=True)
class ImageSet:
    """One split.

    Attributes:
        images: float32 ``[N, channels, *spatial]``.
        labels: int64 ``[N]``, indices into ``classes``.
        units: int64 ``[N]``, the privacy unit of each image, ``0 .. n_units - 1``.
        n_units: number of units; each owns at least one image.
        classes: names of the classes.
        name: of the split.
        unit: what a unit is, "image" or "patient".
    """

    images: Tensor
    labels: Tensor
    units: Tensor
    n_units: int
    classes: tuple[str, ...]
    name: str
    unit: str

    def __post_init__(self) -> None:
        n = len(self.images)
        if n == 0:
            raise DataError(f"The {self.name} split has no images; give it some or choose other splits.")
        if self.images.dtype != torch.float32 or self.labels.shape != (n,) or self.units.shape != (n,):
            raise ValueError(f"the {self.name} split is not float32 images with one label and one unit each.")
        if not torch.equal(self.units.unique(), torch.arange(self.n_units)):
            raise ValueError(f"the units of the {self.name} split are not 0 .. {self.n_units - 1}.")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            raise DataError(
                f"The {self.name} split has labels outside 0 .. {len(self.classes) - 1}; correct the labels or the "
                "classes on the card."
            )

    def unit_labels(self) -> Tensor:
        """int64 ``[n_units]``: the label of each unit; raises :class:`DataError` when its images disagree."""
        first = torch.full((self.n_units,), len(self.classes), dtype=torch.int64)
        first = first.scatter_reduce(0, self.units, self.labels, "amin")
        last = torch.zeros(self.n_units, dtype=torch.int64).scatter_reduce(0, self.units, self.labels, "amax")
        if not torch.equal(first, last):
            raise DataError(
                f"The images of one patient in the {self.name} split have different labels; label whole patients, or "
                "set data.unit to image."
            )
        return first

    def sha256(self) -> str:
        """Hash of pixels, labels and units, for the provenance of a report."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.units):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
