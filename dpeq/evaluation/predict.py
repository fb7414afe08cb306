"""Predictions per privacy unit: a patient's score is the mean over all of the patient's images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpeq.data.images import ImageSet

__all__ = ["predict_units"]


@torch.inference_mode()
def predict_units(model: nn.Module, images: ImageSet, *, device: torch.device, batch: int = 256) -> Tensor:
    """Class probabilities, float64 ``[n_units, classes]``, rows summing to 1."""
    model.to(device).eval()
    rows = torch.cat([model(x.to(device)).double().softmax(dim=1).cpu() for x in images.images.split(batch)])
    totals = torch.zeros(images.n_units, rows.shape[1], dtype=rows.dtype).index_add_(0, images.units, rows)
    return totals / torch.bincount(images.units, minlength=images.n_units)[:, None]
