"""Gradients per unit of every trainable layer, by Opacus' hooks, against one backward pass per unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import relative_error, unit_gradients_by_autograd
from torch import Tensor, nn

from dpeq.groups import group
from dpeq.nn import UNIT_LAYERS
from dpeq.nn.activations import NormActivation
from dpeq.nn.fields import FieldType
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.position import PositionEmbedding
from dpeq.nn.separable import DepthwiseSteerableConv
from dpeq.nn.spectral import GroupPointwise
from dpeq.nn.standardized import StandardizedConv
from dpeq.nn.steerable import SteerableConv
from dpeq.privacy.clipping import UnitGradSampleModule

BATCHES = [(2, 1), (2, 3), (1, 1), (1, 3), (0, 1), (0, 3)]  # units, views


class Reading(nn.Module):
    """Three fixed numbers per row, from all that a layer says: no parameters, and no symmetry to hide behind."""

    def forward(self, y: Tensor) -> Tensor:
        flat = y.flatten(1)
        places = torch.arange(flat.shape[1], dtype=y.dtype).view(-1, 1)
        return flat @ torch.sin(places * torch.tensor([[1.0, 1.7, 2.3]], dtype=y.dtype) + 0.5)


def network(layer: nn.Module, channels: int, dim: int, *, first: bool) -> nn.Module:
    """The layer between a first one, whose output requires a gradient, and fixed numbers."""
    before: list[nn.Module] = []
    if first:
        before = [nn.Linear(channels, channels) if dim == 1 else nn.GroupNorm(1, channels)]
    net = nn.Sequential(*before, layer, Reading())
    for p in net.parameters():  # away from symmetric starts: scales of 1, shifts of 0
        nn.init.normal_(p, std=0.5)
    return net


def check(net: nn.Module, shape: tuple[int, ...], batches: list[tuple[int, int]] = BATCHES) -> None:
    """Gradients of every unit, to 1e-9 of the largest, for the parameters of the layer in ``net[-2]``.

    In double precision: where the softmax saturates, autograd itself is off by more than 1e-5 in single. For no units
    shapes alone; the layer before is scaffolding, and its gradient may vanish.
    """
    net = net.double()
    for units, views in batches:
        x = torch.randn(units * views, *shape, dtype=torch.float64)
        y = torch.randint(0, 3, (units,)).repeat_interleave(views)
        expected = unit_gradients_by_autograd(net, x, y, views) if units else {}
        wrapped = UnitGradSampleModule(net, views)
        wrapped.backward(wrapped(x), y)
        for name, p in net.named_parameters():
            if not p.requires_grad:
                assert getattr(p, "grad_sample", None) is None, name
                continue
            assert p.grad_sample.shape == (units, *p.shape), (name, units, views)
            if units and name.startswith(f"{len(net) - 2}."):
                assert expected[name].abs().max() > 0, f"{name}: nothing to compare"
                assert relative_error(p.grad_sample, expected[name]) <= 1e-9, (name, units, views)
        wrapped.detach()


@dataclass(frozen=True)
class Case:
    """A layer and the shape of one row of its input."""

    label: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def network(self, *, first: bool) -> nn.Module:
        # position embeddings read tokens, whose channels come last
        dim = len(self.shape) - 1
        return network(self.build(), self.shape[-1 if dim == 1 else 0], dim, first=first)


def types(name: str, *representations: str, fields: int = 2) -> list[FieldType]:
    return [FieldType(group(name), r, fields) for r in representations]


SIZE = {2: (5, 5), 3: (5, 5, 3)}

PAIRS = [
    ("C4", "trivial", "regular"),
    ("C4", "regular", "quotient:C2"),
    ("C4", "irrep:1", "irrep:2"),
    ("D4", "regular", "regular"),
    ("D4", "quotient:D1", "irrep:2"),
    ("D4", "irrep:2", "regular"),
    ("D4", "regular", "trivial"),
    ("C8", "trivial", "regular"),
    ("C8", "regular", "irrep:1"),
    ("C8", "regular", "regular"),
    ("SO2", "trivial", "fourier:2"),
    ("SO2", "fourier:2", "fourier:2"),
    ("SO2", "fourier:1", "irrep:2"),
    ("O2", "fourier:1", "fourier:1"),
    ("mirror", "regular", "regular"),
    ("mirror", "trivial", "irrep:1"),
    ("axial-D4", "trivial", "regular"),
    ("axial-D4", "regular", "quotient:mirror"),
    ("axial-D4", "irrep:2", "trivial"),
    ("axial-SO2", "fourier:1", "fourier:1"),
]
CUBE = [
    ("O", "trivial", "regular"),
    ("O", "regular", "irrep:3"),
    ("O", "quotient:axial-C4", "regular"),
    ("Oh", "trivial", "regular"),
    ("Oh", "quotient:O", "irrep:8"),
]
GEOMETRIES = [{}, {"stride": 2}, {"dilation": 2}, {"stride": 2, "dilation": 2, "bias": False}, {"padding": 0}]


@pytest.mark.parametrize(("name", "inner", "outer"), PAIRS)
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_steerable_convolution(name, inner, outer, options):
    t_in, t_out = types(name, inner, outer)
    size = SIZE[t_in.group.dim]
    check(
        network(SteerableConv(t_in, t_out, **options), t_in.channels, t_in.group.dim, first=True),
        (t_in.channels, *size),
    )


@pytest.mark.parametrize(("name", "inner", "outer"), CUBE)
@pytest.mark.parametrize("options", [{}, {"stride": 2}], ids=str)
def test_steerable_convolution_of_the_cubes_groups(name, inner, outer, options):
    t_in, t_out = types(name, inner, outer, fields=1)
    net = network(SteerableConv(t_in, t_out, **options), t_in.channels, 3, first=True)
    check(net, (t_in.channels, 3, 3, 3), [(2, 1), (1, 3), (0, 1)])


@pytest.mark.parametrize("kernel_size", [1, 2, 5])
@pytest.mark.parametrize("name", ["D4", "axial-C4"])
def test_steerable_convolution_of_other_kernels(name, kernel_size):
    """Windows of 2 lie symmetrically on even axes, with a stride too."""
    t_in, t_out = types(name, "regular", "regular", fields=1)
    stride = 2 if kernel_size == 2 else 1
    layer = SteerableConv(t_in, t_out, kernel_size, stride=stride)
    size = (4, 4) if t_in.group.dim == 2 else (4, 4, 2)
    check(network(layer, t_in.channels, t_in.group.dim, first=True), (t_in.channels, *size), [(2, 2), (0, 1)])


REGULAR = ["C4", "D4", "mirror", "axial-D4", "O", "Oh", "trivial", "trivial-3d"]


@pytest.mark.parametrize("name", REGULAR)
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"stride": 2, "dilation": 2}], ids=str)
def test_depthwise_convolution(name, options):
    (t,) = types(name, "regular")
    size = (5, 5) if t.group.dim == 2 else (5, 5, 5) if name in ("O", "Oh") else (5, 5, 3)
    batches = BATCHES if t.size < 24 else [(2, 1), (1, 2), (0, 1)]
    check(
        network(DepthwiseSteerableConv(t, **options), t.channels, t.group.dim, first=True), (t.channels, *size), batches
    )


@pytest.mark.parametrize("name", [*REGULAR, "C2", "axial-C4"])
@pytest.mark.parametrize("bias", [True, False])
def test_group_pointwise(name, bias):
    """C4 has an irrep of complex type, O has irreps of three dimensions."""
    t_in, t_out = FieldType(group(name), "regular", 2), FieldType(group(name), "regular", 3)
    size = (3, 2) if t_in.group.dim == 2 else (2, 2, 2)
    check(
        network(GroupPointwise(t_in, t_out, bias=bias), t_in.channels, t_in.group.dim, first=True),
        (t_in.channels, *size),
    )


FIELDS = [
    ("C4", "regular"),
    ("D4", "trivial"),
    ("D4", "quotient:D1"),
    ("D4", "irrep:2"),
    ("C8", "irrep:0"),
    ("SO2", "fourier:2"),
    ("O2", "fourier:2"),
    ("mirror", "regular"),
    ("axial-D4", "regular"),
    ("axial-D4", "irrep:1"),
    ("O", "irrep:3"),
    ("Oh", "regular"),
]


@pytest.mark.parametrize(("name", "representation"), FIELDS)
@pytest.mark.parametrize("num_groups", [1, 2])
def test_group_norm(name, representation, num_groups):
    (t,) = types(name, representation, fields=4)
    size = (4, 3) if t.group.dim == 2 else (3, 3, 2)
    check(network(EquivariantGroupNorm(t, num_groups), t.channels, t.group.dim, first=True), (t.channels, *size))


@pytest.mark.parametrize(
    ("name", "representation"),
    [(n, r) for n, r in FIELDS if r.startswith(("irrep", "fourier"))]
    + [("SO2", "irrep:2"), ("axial-SO2", "fourier:1")],
)
@pytest.mark.parametrize("function", ["mish", "silu"])
def test_norm_activation(name, representation, function):
    (t,) = types(name, representation)
    size = (4, 3) if t.group.dim == 2 else (3, 3, 2)
    check(network(NormActivation(t, function), t.channels, t.group.dim, first=True), (t.channels, *size))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": 0, "bias": False}], ids=str)
def test_standardised_convolution(dim, options):
    check(network(StandardizedConv(dim, 2, 3, **options), 2, dim, first=True), (2, *SIZE[dim]))


def test_position_embedding():
    check(network(PositionEmbedding(5, 4), 4, 1, first=True), (5, 4))


def small(name: str, representation: str = "regular") -> FieldType:
    return FieldType(group(name), representation, 2)


# One of every class, for what all have in common.
ONE_OF_EACH = [
    Case("steerable", lambda: SteerableConv(small("D4"), small("D4")), (16, 5, 5)),
    Case("steerable 3D", lambda: SteerableConv(small("axial-C4"), small("axial-C4")), (8, 3, 3, 2)),
    Case("norm", lambda: EquivariantGroupNorm(small("D4"), 1), (16, 4, 4)),
    Case("norm of fourier fields", lambda: EquivariantGroupNorm(small("SO2", "fourier:1"), 1), (6, 4, 4)),
    Case("depthwise", lambda: DepthwiseSteerableConv(small("D4")), (16, 5, 5)),
    Case("depthwise 3D", lambda: DepthwiseSteerableConv(small("axial-C4")), (8, 3, 3, 2)),
    Case("pointwise", lambda: GroupPointwise(small("C4"), small("C4")), (8, 3, 3)),
    Case("standardised", lambda: StandardizedConv(2, 2, 3), (2, 5, 5)),
    Case("position", lambda: PositionEmbedding(5, 4), (5, 4)),
    Case("norm activation", lambda: NormActivation(small("SO2", "fourier:1")), (6, 4, 4)),
]
each = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda c: c.label)


def test_every_registered_layer_is_tried():
    tried = {type(m) for case in ONE_OF_EACH for m in case.build().modules()}
    assert set(UNIT_LAYERS) <= tried


@each
def test_the_first_layer_of_a_network(case):
    """Its input requires no gradient, so that it may not do without autograd where nothing else needs it."""
    check(case.network(first=False), case.shape)


@each
@pytest.mark.parametrize("first", [True, False])
def test_frozen_parameters_get_no_gradient_and_the_others_the_right_one(case, first):
    """Every parameter of the layer frozen in turn, and every one alone trained."""
    names = [n for n, _ in case.build().named_parameters()]
    for frozen in {frozenset({n}) for n in names} | {frozenset(names) - {n} for n in names}:
        if len(frozen) == len(names) and not first:
            continue  # nothing is left to train
        net = case.network(first=first)
        layer = net[1 if first else 0]
        for name, p in layer.named_parameters():
            p.requires_grad_(name not in frozen)
        check(net, case.shape, [(2, 2), (0, 1)])


@each
def test_gradients_do_not_depend_on_the_rest_of_the_batch(case):
    net = case.network(first=True)
    x, y = torch.randn(3, *case.shape), torch.tensor([0, 1, 2])
    whole = UnitGradSampleModule(net)
    whole.backward(whole(x), y)
    together = {n: p.grad_sample[1].clone() for n, p in net.named_parameters()}
    whole.detach()
    x[0], x[2] = 100 * x[0], 0.0
    again = UnitGradSampleModule(net)
    again.backward(again(x), y)
    for name, p in net.named_parameters():
        assert relative_error(p.grad_sample[1], together[name]) <= 1e-5, name


@each
def test_double_precision_agrees_to_its_own_rounding(case):
    net = case.network(first=True).double()
    x, y = torch.randn(2, *case.shape, dtype=torch.float64), torch.tensor([0, 2])
    expected = unit_gradients_by_autograd(net, x, y)
    wrapped = UnitGradSampleModule(net)
    wrapped.backward(wrapped(x), y)
    for name, p in net.named_parameters():
        assert relative_error(p.grad_sample, expected[name]) <= 1e-12, name
