"""Images in memory, with their labels and the privacy unit that owns each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpeq.data.attributes import ATTRIBUTES
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
        cases: int64 ``[N]``, which labelled thing each image shows, ``0 .. n_cases - 1`` (the slices of a volume show
            one); None where every image was labelled by itself.
        patients: int64 ``[N]``, whom each image shows, ``0 .. n_patients - 1``; None where the data names no patients.
        groups: value of each image by attribute of :data:`dpeq.data.attributes.ATTRIBUTES`, "" where it is unknown;
            None where none is known, and always of the images that are trained on.
        burned_in: bool ``[N]``, whether the header of an image declares text in its pixels; None where there are no
            headers to ask.
    """

    images: Tensor
    labels: Tensor
    units: Tensor
    n_units: int
    classes: tuple[str, ...]
    name: str
    unit: str
    cases: Tensor | None = None
    patients: Tensor | None = None
    groups: Mapping[str, tuple[str, ...]] | None = None
    burned_in: Tensor | None = None

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
        if self.cases is not None:
            n_cases = int(self.cases.max()) + 1
            if self.cases.shape != (n,) or not torch.equal(self.cases.unique(), torch.arange(n_cases)):
                raise ValueError(f"the cases of the {self.name} split are not 0 .. n - 1, one per image.")
            if not all(_constant_within(self.cases, values, n_cases) for values in (self.labels, self.units)):
                raise ValueError(f"a case of the {self.name} split has two labels or two units.")
        if self.patients is not None and self.patients.shape != (n,):
            raise ValueError(f"the patients of the {self.name} split are not one per image.")
        if self.burned_in is not None and (self.burned_in.shape != (n,) or self.burned_in.dtype != torch.bool):
            raise ValueError(f"the marks of burned-in text of the {self.name} split are not one truth value per image.")
        if self.groups is not None:
            if self.name == "train" or self.patients is None:
                raise ValueError("groups are of images of known patients that are not trained on.")
            if not set(self.groups) <= set(ATTRIBUTES) or any(len(values) != n for values in self.groups.values()):
                raise ValueError(f"the groups of the {self.name} split are not one value per image and attribute.")

    def of_units(self, images: Tensor, labels: Tensor, units: Tensor, n_units: int) -> ImageSet:
        """The same split with other units: what is known of single images beside their labels does not come along."""
        bare = {"cases": None, "patients": None, "groups": None, "burned_in": None}
        return replace(self, images=images, labels=labels, units=units, n_units=n_units, **bare)

    def one_label_per_unit(self) -> bool:
        """Whether all images of every unit have the same label."""
        return _constant_within(self.units, self.labels, self.n_units)

    def sha256(self) -> str:
        """Hash of pixels, labels and units, for the provenance of a report."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.units):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _constant_within(groups: Tensor, values: Tensor, n: int) -> bool:
    """Whether all members of each of ``n`` groups have the same value."""
    largest = int(values.max())
    first = torch.full((n,), largest).scatter_reduce(0, groups, values, "amin")
    last = torch.zeros(n, dtype=torch.int64).scatter_reduce(0, groups, values, "amax")
    return torch.equal(first, last)
