"""The cases that a split is scored by: patients where each has one label, otherwise the images that were labelled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpeq.data.images import ImageSet

__all__ = ["Cases", "cases_of"]


@dataclass(frozen=True, eq=False)
class Cases:
    """One prediction is made, and counted, per case.

    Attributes:
        of_images: int64 ``[N]``, the case of each image; its score is the mean over its images.
        labels: int64 ``[n]``, the class of each case.
        owners: int64 ``[n]``, the unit of each case where units own several, whose cases are then not independent;
            None where every case is a unit.
    """

    of_images: Tensor
    labels: Tensor
    owners: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)


def cases_of(images: ImageSet) -> Cases:
    """Units, if all images of each have the same label; else the labelled images themselves."""
    if images.one_label_per_unit():
        return Cases(images.units, _first(images.labels, images.units, images.n_units), None)
    of_images = torch.arange(len(images.labels)) if images.cases is None else images.cases
    n = int(of_images.max()) + 1
    return Cases(of_images, _first(images.labels, of_images, n), _first(images.units, of_images, n))


def _first(values: Tensor, groups: Tensor, n: int) -> Tensor:
    """The value that all members of a group share, int64 ``[n]``."""
    return torch.zeros(n, dtype=torch.int64).scatter_(0, groups, values)
