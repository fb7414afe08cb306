"""Predictions per case: a patient's score is the mean over all of the patient's images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpeq.data.images import ImageSet
from dpeq.evaluation.cases import Cases

__all__ = ["predict_cases"]


@torch.inference_mode()
def predict_cases(
    model: nn.Module, images: ImageSet, cases: Cases, *, device: torch.device, batch: int = 256
) -> Tensor:
    """Class probabilities, float64 ``[len(cases), classes]``, rows summing to 1."""
    model.to(device).eval()
    rows = torch.cat([model(x.to(device)).double().softmax(dim=1).cpu() for x in images.images.split(batch)])
    totals = torch.zeros(len(cases), rows.shape[1], dtype=rows.dtype).index_add_(0, cases.of_images, rows)
    return totals / torch.bincount(cases.of_images, minlength=len(cases))[:, None]
