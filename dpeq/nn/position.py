"""Learned position embeddings as a layer of their own, so that they get a gradient per privacy unit like all others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpeq.nn.layer import UnitLayer

__all__ = ["PositionEmbedding"]


class PositionEmbedding(UnitLayer):
    """Adds one learned vector per token: ``[N, tokens, hidden] -> [N, tokens, hidden]`` (Dosovitskiy et al. 2021).

    A bare parameter of a network has no layer whose hooks could see its gradient; this layer is nothing but that.
    """

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, hidden))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight

    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """See :meth:`UnitLayer.per_unit_gradients`; every token's gradient is the sum over the unit's rows."""
        if not self.weight.requires_grad:
            return {}
        units = x.shape[0] // views
        return {self.weight: grad_output.reshape(units, views, *self.weight.shape).sum(dim=1)}

    def extra_repr(self) -> str:
        return f"tokens={self.weight.shape[0]}, hidden={self.weight.shape[1]}"
