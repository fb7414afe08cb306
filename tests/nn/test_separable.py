"""The separable convolution: exact symmetry, the same maps as a full 1x1 convolution, and less arithmetic."""

import pytest
import torch
from helpers import assert_equivariant, relative_error

from dpeq.groups import group
from dpeq.models.cost import count_macs
from dpeq.nn.basis import kernel_basis
from dpeq.nn.blocks import ConvBlock
from dpeq.nn.fields import FieldType
from dpeq.nn.separable import DepthwiseSteerableConv, SeparableConv
from dpeq.nn.spectral import GroupPointwise, group_fourier
from dpeq.nn.steerable import SteerableConv

GROUPS = ["trivial", "C2", "C4", "D1", "D4", "mirror", "axial-C4", "axial-D4", "O", "Oh"]
SPATIAL = {2: (9, 9), 3: (5, 5, 5)}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_is_equivariant(name, stride):
    g = group(name)
    a, b = FieldType(g, "regular", 2), FieldType(g, "regular", 3)
    layer = SeparableConv(a, b, stride=stride)
    torch.nn.init.normal_(layer.pointwise.mix.bias)
    assert_equivariant(layer, a, b, SPATIAL[g.dim])


@pytest.mark.parametrize("name", GROUPS)
def test_pointwise_maps_are_all_equivariant_1x1_maps(name):
    """As the coefficients run over a basis, the filters are an orthonormal basis of the full 1x1 convolution's."""
    g = group(name)
    one = FieldType(g, "regular", 1)
    layer = GroupPointwise(one, one, bias=False).double()
    rows = []
    with torch.no_grad():
        for number in range(layer.mix.weight.numel()):
            layer.mix.weight.zero_().flatten()[number] = 1.0
            rows.append(layer.filter().flatten())
    found = torch.stack(rows)
    torch.testing.assert_close(found @ found.T, torch.eye(len(found), dtype=torch.double), atol=1e-6, rtol=0)
    full = kernel_basis(g, "regular", "regular", 1).dense()
    assert len(full) == len(found)
    torch.testing.assert_close(found @ full.T @ full, found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GROUPS)
def test_depthwise_filter_is_one_filter_turned_by_each_element(name):
    g = group(name)
    layer = DepthwiseSteerableConv(FieldType(g, "regular", 2))
    kernel = layer.filter()
    for e in g.elements:
        copies = kernel.view(2, g.order, *[3] * g.dim)
        torch.testing.assert_close(copies[:, e], g.act_on_grid(copies[:, 0], e))


@pytest.mark.parametrize("name", ["C4", "D4", "O"])
def test_plain_copies_compute_the_same(name):
    g = group(name)
    a, b = FieldType(g, "regular", 2), FieldType(g, "regular", 3)
    x = torch.randn(2, a.channels, *SPATIAL[g.dim])
    pointwise, depthwise = GroupPointwise(a, b), DepthwiseSteerableConv(a)
    torch.nn.init.normal_(pointwise.mix.bias)
    for layer in (pointwise, depthwise):
        assert relative_error(layer.plain()(x), layer(x).detach()) < 1e-5


def test_group_fourier_is_orthogonal_and_counts_its_products():
    """The cost of a pointwise map per pair of fields: the sum of d^3, against |G|^2 in the regular basis."""
    expected = {"C4": 6, "D4": 12, "O": 64, "Oh": 128, "D2": 4, "C2": 2}
    for name, products in expected.items():
        fourier = group_fourier(group(name))
        n = len(fourier.matrix)
        torch.testing.assert_close(
            torch.from_numpy(fourier.matrix @ fourier.matrix.T), torch.eye(n, dtype=torch.double), atol=1e-12, rtol=0
        )
        assert fourier.products == products
        assert sum(d * copies * count for d, copies, _, count in fourier.parts) == n


@pytest.mark.parametrize(("name", "fields", "most"), [("D4", 24, 2.5), ("axial-D4", 48, 2.5), ("O", 64, 4.0)])
def test_arithmetic_per_parameter_stays_near_a_plain_convolutions(name, fields, most):
    """A plain convolution multiplies once per parameter and position; a full group convolution about |G| times."""
    g = group(name)
    t = FieldType(g, "regular", fields)
    spatial = (8, 8) if g.dim == 2 else (4, 4, 4)
    positions = 8**2 if g.dim == 2 else 4**3

    def per_parameter(layer):
        return count_macs(layer, (t.channels, *spatial)) / positions / sum(p.numel() for p in layer.parameters())

    assert per_parameter(SeparableConv(t, t, bias=False)) <= most
    if g.dim == 2:
        assert per_parameter(SteerableConv(t, t, bias=False)) > 7


def test_initial_outputs_keep_the_size_of_the_input():
    """He initialisation: the block's outputs before the norm have about twice the mean square of unit inputs."""
    t = FieldType(group("D4"), "regular", 32)
    x = torch.randn(4, t.channels, 16, 16)
    for layer in (SteerableConv(t, t), SeparableConv(t, t)):
        assert 1.0 < float(layer(x)[..., 2:-2, 2:-2].detach().square().mean()) < 3.5


def test_a_first_layer_from_scalars_is_full_and_other_fields_are_refused():
    d4 = group("D4")
    scalar, regular = FieldType(d4, "trivial", 1), FieldType(d4, "regular", 4)
    assert isinstance(ConvBlock(scalar, regular, norm_groups=1, kind="separable").conv, SteerableConv)
    assert isinstance(ConvBlock(regular, regular, norm_groups=1, kind="separable").conv, SeparableConv)
    with pytest.raises(ValueError, match="regular fields"):
        SeparableConv(FieldType(d4, "trivial", 2), regular)
    with pytest.raises(ValueError, match="keeps the grid"):
        DepthwiseSteerableConv(FieldType(group("C8"), "regular", 2))
