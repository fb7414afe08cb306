"""The depthwise convolution's own backward pass against PyTorch's."""

import pytest
import torch
from helpers import relative_error

from dpeq.nn.correlate import Geometry
from dpeq.nn.depthwise import depthwise_convolve, depthwise_filter_gradients


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, (1, 2, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [None, 0, 1, 9])
def test_gradients_are_those_of_the_plain_convolution(dim, kernel_size, stride, dilation, padding):
    geometry = Geometry.of(dim, kernel_size, stride if isinstance(stride, int) else stride[:dim], padding, dilation)
    x = torch.randn(3, 4, *[11, 12, 10][:dim], dtype=torch.double, requires_grad=True)
    kernel = torch.randn(4, 1, *[kernel_size] * dim, dtype=torch.double, requires_grad=True)
    plain = geometry.convolve(x, kernel, groups=4)
    ours = depthwise_convolve(x, kernel, geometry)
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, kernel), grad)
    found = torch.autograd.grad(ours, (x, kernel), grad)
    rows = depthwise_filter_gradients(x.detach(), grad, geometry)
    assert relative_error(ours.detach(), plain.detach()) < 1e-12
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, expected, strict=True))
    assert relative_error(rows.sum(dim=0).view_as(kernel), expected[1]) < 1e-12
    alone = torch.autograd.grad(geometry.convolve(x[:1], kernel, groups=4), kernel, grad[:1])[0]
    assert relative_error(rows[0].view_as(kernel), alone) < 1e-12


def test_vmap_over_units_gives_the_same_gradients():
    """The whole-network functorch method, which others use, works on these layers too."""
    geometry = Geometry.of(2, 3, 1, None, 1)
    x, kernel = torch.randn(4, 3, 6, 6), torch.randn(3, 1, 3, 3)

    def loss(kernel, row):
        return depthwise_convolve(row[None], kernel, geometry).square().sum()

    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(kernel, x)
    output = geometry.convolve(x, kernel, groups=3)
    rows = depthwise_filter_gradients(x, 2 * output, geometry)
    torch.testing.assert_close(per_row.view_as(rows), rows, atol=1e-4, rtol=1e-4)
