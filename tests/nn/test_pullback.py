"""Three ways to one gradient: by elements, by folding the plain filter's, and by autograd one unit at a time."""

from __future__ import annotations

import math

import pytest
import torch

from dpeq.groups import group
from dpeq.nn import pullback
from dpeq.nn.correlate import Geometry, _by_grouped_convolution, _by_matrix_products
from dpeq.nn.fields import FieldType
from dpeq.nn.pullback import fold_filter_gradients, gradients_by_element, pays_by_element
from dpeq.nn.steerable import SteerableConv

CASES = [
    ("D4", (6, 6), 3, 1, 1),
    ("D4", (5, 5), 3, 2, 0),
    ("C4", (4, 4), 3, 3, 2),
    ("D2", (5, 7), 3, 2, 1),
    ("D1", (4, 6), 5, 1, 2),
    ("axial-D4", (5, 5, 3), 3, 2, 1),
    ("O", (3, 3, 3), 3, 1, 1),
    ("Oh", (3, 3, 3), 3, 2, 1),
]


@pytest.mark.parametrize(("name", "space", "kernel", "views", "padding"), CASES)
@pytest.mark.parametrize("working_set", [1, 2**21])
def test_both_ways_agree_with_autograd(name, space, kernel, views, padding, working_set, monkeypatch):
    """A small working set cuts the units apart; the answer must not care."""
    monkeypatch.setattr(pullback, "_WORKING_SET", working_set)
    whole = group(name)
    inner, outer = FieldType(whole, "regular", 2), FieldType(whole, "regular", 3)
    generator = torch.Generator().manual_seed(0)
    layer = SteerableConv(inner, outer, kernel, padding=padding).double()
    units = 3
    x = torch.randn(units * views, inner.channels, *space, generator=generator, dtype=torch.float64)
    grad = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    given = (x, grad, inner, outer, layer.geometry)
    by_element = gradients_by_element(*given, layer.basis, views)
    folded = fold_filter_gradients(*given, layer.basis, views)
    for u in range(units):
        rows = slice(u * views, (u + 1) * views)
        (oracle,) = torch.autograd.grad((layer(x[rows]) * grad[rows]).sum(), layer.weight)
        torch.testing.assert_close(by_element[u], oracle, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(folded[u], oracle, rtol=1e-10, atol=1e-10)


def test_the_way_by_elements_is_not_taken_where_it_is_wrong_or_dear():
    d4, c8 = group("D4"), group("C8")
    wide, scalar, other = FieldType(d4, "regular", 4), FieldType(d4, "trivial", 4), FieldType(c8, "regular", 4)
    same, strided = Geometry.of(2, 3, 1, None, 1), Geometry.of(2, 3, 2, None, 1)

    def pays(inner, outer, geometry, *space):
        plane = torch.zeros(1, 1, *space)
        return pays_by_element(plane, plane, inner, outer, geometry)

    assert pays(wide, wide, same, 4, 4)
    assert not pays(wide, wide, same, 4, 5)  # a quarter turn does not keep it
    assert not pays(wide, wide, strided, 5, 5)
    assert not pays(scalar, wide, same, 4, 4)
    assert not pays(other, other, same, 4, 4)
    assert not pays(wide, wide, same, 64, 64)


@pytest.mark.parametrize("channels", [(1, 3), (16, 32), (20, 17), (40, 1)])
@pytest.mark.parametrize(
    ("dim", "kernel", "stride", "padding", "dilation"),
    [(2, 3, 1, 1, 1), (2, 2, 2, 0, 1), (2, 3, 2, 1, 1), (2, 3, 1, 2, 2), (3, 3, 1, 1, 1), (3, 3, 2, 0, 1)],
)
def test_grouped_convolution_equals_matrix_products(channels, dim, kernel, stride, padding, dilation):
    """The processor's way and the GPU's; channels that are no whole vectors are filled up and cut off again."""
    geometry, views = Geometry.of(dim, kernel, stride, padding, dilation), 2
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3 * views, channels[0], *[7] * dim, generator=generator)
    weight = torch.zeros(channels[1], channels[0], *[kernel] * dim)
    grad = torch.randn(geometry.convolve(x, weight).shape, generator=generator)
    a, b = (way(x, grad, geometry, views) for way in (_by_grouped_convolution, _by_matrix_products))
    assert a.shape == (3, channels[1], channels[0] * kernel**dim)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * math.sqrt(grad[0, 0].numel()))
