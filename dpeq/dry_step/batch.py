"""The made-up batch that a network is examined on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MadeUpBatch"]


@dataclass(frozen=True)
class MadeUpBatch:
    """Noise for images; the rows of a unit stand together.

    Attributes:
        x: images ``[units * views, channels, *spatial]``.
        labels: ``[units * views]``, the same for all rows of a unit.
        classes: outputs that a classifier has to have.
        views: rows of a unit.
    """

    x: Tensor
    labels: Tensor
    classes: int
    views: int

    @classmethod
    def drawn(
        cls, input_shape: tuple[int, ...], classes: int, views: int, units: int, device: torch.device
    ) -> MadeUpBatch:
        """From torch's global random state, on the CPU, so that it is the same on every device."""
        x = torch.randn(units * views, *input_shape).to(device)
        labels = (torch.arange(units) % classes).repeat_interleave(views).to(device)
        return cls(x, labels, classes, views)

    @property
    def rows(self) -> int:
        return len(self.x)

    @property
    def units(self) -> int:
        return self.rows // self.views

    def rows_of(self, unit: int) -> slice:
        return slice(unit * self.views, (unit + 1) * self.views)

    def with_others_changed(self, unit: int) -> Tensor:
        """The images, with those of all other units drawn anew and differently distributed."""
        others = torch.arange(self.rows, device=self.x.device) // self.views != unit
        changed = self.x.clone()
        changed[others] = torch.randn_like(changed[others]) * 2 + 1
        return changed

    def loss(self, output: list[Tensor], labels: Tensor) -> Tensor:
        """Summed over rows, each row's own; for outputs that are no logits, some smooth function of every number."""
        if len(output) == 1 and output[0].dim() == 2 and output[0].shape[1] == self.classes:
            return F.cross_entropy(output[0], labels, reduction="sum") / self.views
        losses = []
        for t in output:
            flat = t.flatten(1)
            weights = torch.cos(torch.arange(flat.shape[1], device=t.device, dtype=t.dtype))
            losses.append((flat * weights).sum() + flat.square().sum() / 2)
        return torch.stack(losses).sum() / self.views
