"""Steerable convolution, group norm and blocks: equivariance and agreement with plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equivariant

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.nn.basis import kernel_basis
from dpeq.nn.blocks import ConvBlock
from dpeq.nn.fields import FieldType
from dpeq.nn.invariant import InvariantPool, Restrict
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.pooling import SymmetricPool
from dpeq.nn.steerable import SteerableConv

GROUPS = ["C4", "D4", "axial-C4", "axial-D4"]
SPATIAL = {2: (9, 9), 3: (7, 7, 5)}


def types(name, fields_in=2, fields_out=3, representation="regular"):
    g = group(name)
    return FieldType(g, representation, fields_in), FieldType(g, "regular", fields_out), SPATIAL[g.dim]


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("representation", ["trivial", "regular"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_convolution_is_equivariant(name, representation, kernel_size):
    t_in, t_out, spatial = types(name, representation=representation)
    layer = SteerableConv(t_in, t_out, kernel_size)
    torch.nn.init.normal_(layer.bias)
    assert_equivariant(layer, t_in, t_out, spatial)


@pytest.mark.parametrize("name", GROUPS)
def test_convolution_to_scalars_is_equivariant(name):
    g = group(name)
    t_in, t_out = FieldType(g, "regular", 2), FieldType(g, "trivial", 3)
    assert_equivariant(SteerableConv(t_in, t_out), t_in, t_out, SPATIAL[g.dim])


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("representation", ["trivial", "regular"])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_equivariant_and_normalises(name, representation, affine):
    t, _, spatial = types(name, fields_in=4, representation=representation)
    layer = EquivariantGroupNorm(t, 2, affine=affine)
    if affine:
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    assert_equivariant(layer, t, t, spatial)
    if not affine:
        y = layer(torch.randn(3, t.channels, *spatial) * 5 + 2).reshape(3, 2, -1)
        torch.testing.assert_close(y.mean(-1), torch.zeros(3, 2), atol=1e-5, rtol=0)
        torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(3, 2), atol=1e-3, rtol=0)


def test_group_norm_of_one_image_ignores_the_others():
    t = FieldType(group("D4"), "regular", 4)
    layer = EquivariantGroupNorm(t, 2)
    x = torch.randn(2, t.channels, 6, 6)
    other = x.clone()
    other[1] *= 100
    assert torch.equal(layer(x)[0], layer(other)[0])


def test_wrong_norm_groups_name_the_right_ones():
    with pytest.raises(ConfigError, match=r"8 norm groups do not divide 6 fields; use one of: 1, 2, 3, 6\."):
        EquivariantGroupNorm(FieldType(group("D4"), "regular", 6), 8)


@pytest.mark.parametrize("spatial", [(8, 8), (7, 7), (6, 6, 5), (5, 5, 1)])
def test_pool_is_equivariant_on_even_and_odd_axes(spatial):
    t = FieldType(group("D4" if len(spatial) == 2 else "axial-D4"), "regular", 2)
    assert_equivariant(SymmetricPool(), t, t, spatial)
    assert SymmetricPool()(torch.zeros(1, 1, *spatial)).shape[2:] == tuple((s + 1) // 2 for s in spatial)


@pytest.mark.parametrize("name", GROUPS)
def test_block_is_equivariant(name):
    t_in, t_out, spatial = types(name)
    assert_equivariant(ConvBlock(t_in, t_out, norm_groups=3, pool=True), t_in, t_out, spatial)


@pytest.mark.parametrize("name", GROUPS)
def test_invariant_pool_is_invariant(name):
    t, _, spatial = types(name)
    assert_equivariant(InvariantPool(t), t, None, spatial)


def test_restrict_keeps_every_channel():
    t = FieldType(group("D4"), "regular", 3)
    layer = Restrict(t, group("D2"))
    assert layer.out_type == FieldType(group("D2"), "regular", 6)
    x = torch.randn(2, t.channels, 3, 3)
    assert torch.equal(layer(x).flatten(1).sort()[0], x.flatten(1).sort()[0])


def test_filter_is_coefficients_times_basis_and_forward_a_plain_convolution():
    t_in, t_out, _ = types("C4")
    layer = SteerableConv(t_in, t_out)
    basis = kernel_basis(group("C4"), "regular", "regular", 3).dense().float().view(-1, 4, 4, 3, 3)
    for o in range(3):
        for i in range(2):
            expected = sum(w * kernel for w, kernel in zip(layer.weight[o, :, i].flatten(), basis, strict=True))
            block = layer.filter()[4 * o : 4 * o + 4, 4 * i : 4 * i + 4]
            torch.testing.assert_close(block, expected)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(
        layer(x), F.conv2d(x, layer.filter(), layer.bias.flatten().repeat_interleave(4), padding=1)
    )


def test_initial_filters_have_he_variance():
    t = FieldType(group("D4"), "regular", 24)
    taps = SteerableConv(t, t).filter().detach()
    # fan_in = channels * 9; the basis lacks a few directions, which the scale of the others makes up for
    assert float(taps.var()) == pytest.approx(2 / (t.channels * 9), rel=0.03)


def test_basis_follows_casts_and_copies_but_stays_out_of_the_state():
    t_in, t_out, _ = types("C4")
    layer = SteerableConv(t_in, t_out)
    assert set(layer.state_dict()) == {"weight", "bias"}
    twin = copy.deepcopy(layer).double()
    assert twin.basis.dtype == torch.float64
    assert layer.basis.dtype == torch.float32
    x = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(twin(x.double()).float(), layer(x))


def test_mixed_groups_and_even_kernels_are_refused():
    with pytest.raises(ValueError, match="one group"):
        SteerableConv(FieldType(group("C4"), "trivial", 1), FieldType(group("D4"), "regular", 1))
    t = FieldType(group("C4"), "regular", 1)
    t = FieldType(group("C8"), "regular", 1)
    with pytest.raises(ConfigError, match="odd"):
        SteerableConv(t, t, 2)
