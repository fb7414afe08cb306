"""A norm keeps its statistics for the hook; however often it is called, each call finds its own."""

from __future__ import annotations

import pytest
import torch
from helpers import relative_error, unit_gradients_by_autograd
from torch import nn

from dpeq.groups import group
from dpeq.nn.fields import FieldType
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.privacy.clipping import UnitGradSampleModule


class Repeated(nn.Module):
    """The same norm on several different inputs, the gradients of which come back in another order."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times
        self.first = nn.Conv2d(1, 8, 3)
        self.norm = EquivariantGroupNorm(FieldType(group("C4"), "regular", 2), 1)
        for p in self.norm.parameters():
            nn.init.normal_(p)

    def forward(self, x):
        start = self.first(x)
        outputs = [self.norm(start * (1 + n) + 30 * n) for n in range(self.times)]
        total = outputs[-1] * 0.5
        for n, y in enumerate(outputs[:-1]):
            total = total * y.sin() + y * (n + 1)
        return total.flatten(2).mean(2)[:, :3]


@pytest.mark.parametrize("times", [1, 2, 3, 6])
@pytest.mark.parametrize("views", [1, 2])
def test_each_call_finds_its_own_statistics(times, views):
    torch.manual_seed(times)
    net = Repeated(times).double()
    x, y = torch.randn(4 * views, 1, 7, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 0]).repeat_interleave(views)
    expected = unit_gradients_by_autograd(net, x, y, views)
    wrapped = UnitGradSampleModule(net, views)
    wrapped.disable_hooks()
    wrapped(x + 1)  # a forward pass whose gradients nobody takes
    wrapped.enable_hooks()
    wrapped.backward(wrapped(x), y)
    for name, p in net.named_parameters():
        assert relative_error(p.grad_sample, expected[name]) <= 1e-10, name
    assert len(net.norm._moments) <= 4


def test_a_frozen_or_released_norm_keeps_nothing():
    net = Repeated(2)
    for p in net.norm.parameters():
        p.requires_grad_(False)
    wrapped = UnitGradSampleModule(net)
    x, y = torch.randn(3, 1, 7, 7), torch.tensor([0, 1, 2])
    wrapped.backward(wrapped(x), y)
    assert not net.norm._moments, "no hook would ever take them"
    wrapped.detach()
    net.norm.requires_grad_(True)
    wrapped = UnitGradSampleModule(net)
    wrapped(x)
    assert net.norm._moments
    wrapped.detach()
    assert not net.norm._moments
