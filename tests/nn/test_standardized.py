"""Weight standardisation and position embeddings: formulas, and gradients per unit against single-sample autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from dpeq.nn.layer import UnitLayer
from dpeq.nn.position import PositionEmbedding
from dpeq.nn.standardized import StandardizedConv

SPATIAL = {2: (9, 8), 3: (7, 6, 5)}


def gradients_one_unit_at_a_time(layer: UnitLayer, x, cotangent, views):
    """A plain backward pass per unit; sees nothing of the closed form."""
    result = {p: [] for p in layer.parameters()}
    for start in range(0, len(x), views):
        rows = slice(start, start + views)
        grads = torch.autograd.grad((layer(x[rows]) * cotangent[rows]).sum(), list(layer.parameters()))
        for p, g in zip(layer.parameters(), grads, strict=True):
            result[p].append(g)
    return {p: torch.stack(g) for p, g in result.items()}


def assert_gradients_agree(layer: UnitLayer, x, views):
    cotangent = torch.randn_like(layer(x))
    actual = layer.per_unit_gradients(x, cotangent, views)
    expected = gradients_one_unit_at_a_time(layer, x, cotangent, views)
    assert actual.keys() == expected.keys()
    for p, g in expected.items():
        assert actual[p].shape == g.shape
        assert float((actual[p] - g).norm() / g.norm()) <= 1e-5


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("units", [1, 3])
def test_gradients_per_unit_equal_single_sample_autograd(dim, stride, views, units):
    layer = StandardizedConv(dim, 3, 4, stride=stride)
    assert_gradients_agree(layer, torch.randn(units * views, 3, *SPATIAL[dim]), views)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "bias"),
    [(1, 2, 0, 1, False), (3, 1, 0, 2, True), (5, 2, 1, 1, False), (2, 2, 0, 1, True), (3, 3, 2, 2, True)],
)
def test_outputs_and_gradients_per_unit_for_every_geometry(dim, kernel_size, stride, padding, dilation, bias):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = StandardizedConv(dim, 3, 2, kernel_size, **options, bias=bias)
    x = torch.randn(4, 3, *SPATIAL[dim])
    convolution = F.conv2d if dim == 2 else F.conv3d
    torch.testing.assert_close(layer(x), convolution(x, layer.filter(), layer.bias, **options))
    assert_gradients_agree(layer, x, views=2)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("views", [1, 2])
def test_an_empty_batch_has_no_units(dim, views):
    layer = StandardizedConv(dim, 2, 3, stride=2)
    x = torch.randn(0, 2, *SPATIAL[dim])
    y = layer(x)
    assert y.shape[0] == 0
    gradients = layer.per_unit_gradients(x, torch.zeros_like(y), views)
    assert {tuple(g.shape) for g in gradients.values()} == {(0, *p.shape) for p in layer.parameters()}


@pytest.mark.parametrize("dim", [2, 3])
def test_filters_have_mean_zero_and_the_variance_of_one_over_fan_in(dim):
    layer = StandardizedConv(dim, 4, 5).double()
    with torch.no_grad():
        layer.weight.mul_(3).add_(7)
    kernel = layer.filter().detach().flatten(1)
    torch.testing.assert_close(kernel.mean(1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    expected = torch.full((5,), 1 / layer.fan_in, dtype=torch.float64)
    torch.testing.assert_close(kernel.var(1, correction=0), expected, rtol=1e-4, atol=0)
    x = torch.randn(2, 4, *SPATIAL[dim], dtype=torch.float64)
    convolution = F.conv2d if dim == 2 else F.conv3d
    torch.testing.assert_close(layer(x), convolution(x, layer.filter(), layer.bias, padding=1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_skipping_the_batch_gradient_changes_no_other(bias, first):
    """The gradients of input and bias stay, and a hook on the output always has something to fire on."""
    layer = StandardizedConv(2, 2, 3, bias=bias)
    layer.per_unit = True
    x = torch.randn(2, 2, 6, 6, requires_grad=not first)
    y = layer(x)
    assert y.requires_grad
    y.square().sum().backward()
    assert layer.weight.grad is None, "left to the hook"
    if not first:
        plain = StandardizedConv(2, 2, 3, bias=bias)
        plain.load_state_dict(layer.state_dict())
        again = x.detach().requires_grad_()
        plain(again).square().sum().backward()
        torch.testing.assert_close(x.grad, again.grad)


def test_frozen_parameters_get_no_gradient():
    layer = StandardizedConv(2, 2, 3)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 2, 6, 6)
    assert set(layer.per_unit_gradients(x, torch.ones(2, 3, 6, 6), 1)) == {layer.bias}


def test_impossible_filters_are_refused():
    with pytest.raises(ValueError, match="single tap"):
        StandardizedConv(2, 1, 3, kernel_size=1)
    with pytest.raises(ValueError, match="2 or 3 spatial axes"):
        StandardizedConv(1, 1, 3)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("units", [0, 1, 3])
def test_position_embeddings_get_gradients_per_unit(views, units):
    layer = PositionEmbedding(tokens=5, hidden=4)
    x = torch.randn(units * views, 5, 4)
    torch.testing.assert_close(layer(x), x + layer.weight)
    if units:
        assert_gradients_agree(layer, x, views)
    else:
        assert layer.per_unit_gradients(x, torch.zeros_like(x), views)[layer.weight].shape == (0, 5, 4)


def test_initial_scale_follows_the_width():
    weight = StandardizedConv(2, 64, 64).weight.detach()
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)
