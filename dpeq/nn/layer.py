"""What every trainable layer of dpeq has in common: exact gradients per privacy unit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["UnitLayer", "by_unit", "per_field_sums", "trains"]


class UnitLayer(nn.Module, ABC):
    """A layer that can say the gradient of each privacy unit on its own.

    Attributes:
        views: consecutive rows of a batch that belong to one unit; the private engine sets it.
        per_unit: set while gradients per unit are taken by hooks. A layer may then keep autograd from computing the
            batch gradient of its parameters, which nobody reads, as long as its output still requires a gradient.
    """

    views: int = 1
    per_unit: bool = False

    def leave_to_autograd(self) -> None:
        """Forgets everything about units: from here on this is a layer like any other."""
        self.views, self.per_unit = 1, False

    @abstractmethod
    def per_unit_gradients(self, x: Tensor, grad_output: Tensor, views: int) -> dict[nn.Parameter, Tensor]:
        """Gradients of the summed loss, per unit.

        Args:
            x: the layer's input ``[units * views, channels, *spatial]``.
            grad_output: gradient at its output ``[units * views, channels, *spatial]``.
            views: rows per unit.

        Returns:
            for every trainable parameter a tensor ``[units, *parameter.shape]``, summed over the unit's rows.
        """


def by_unit(x: Tensor, views: int) -> Tensor:
    """``[units * views, C, P] -> [units, C, views * P]``: a contraction over positions then covers all views."""
    if views == 1:
        return x
    units = x.shape[0] // views
    return x.reshape(units, views, *x.shape[1:]).transpose(1, 2).reshape(units, x.shape[1], views * x.shape[2])


def per_field_sums(grad: Tensor, fields: int, views: int) -> Tensor:
    """Sums ``[units * views, fields * size, *spatial]`` over positions and views: ``[units, fields, size]``."""
    size, positions = grad.shape[1] // fields, math.prod(grad.shape[2:])
    return grad.reshape(grad.shape[0] // views, views, fields, size, positions).sum(dim=(1, 4))


def trains(parameter: Tensor | None) -> bool:
    """Whether there is such a parameter and it is to be trained."""
    return parameter is not None and parameter.requires_grad
