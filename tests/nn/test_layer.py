"""What a layer has to say before it may take part in private training."""

import copy

import pytest
import torch
from torch import nn

from dpeq.nn.layer import UnitLayer


class Shift(UnitLayer):
    """Adds one number to every image ``[N, C, *spatial]``."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.shift

    def per_unit_gradients(self, x, grad_output, views):
        return {self.shift: grad_output.reshape(len(x) // views, -1).sum(1, keepdim=True)}


def test_a_layer_without_gradients_per_unit_cannot_be_built():
    class Silent(UnitLayer):
        pass

    with pytest.raises(TypeError, match="per_unit_gradients"):
        Silent()


def test_a_copy_of_a_layer_has_parameters_and_settings_of_its_own():
    layer = Shift()
    layer.views, layer.per_unit = 2, True
    other = copy.deepcopy(layer)
    assert (other.views, other.per_unit) == (2, True)
    other.views = 3
    (parameter,) = other.per_unit_gradients(torch.ones(4, 1, 2), torch.ones(4, 1, 2), 2)
    assert parameter is other.shift is not layer.shift
    assert layer.views == 2
