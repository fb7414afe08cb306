"""Costs against closed forms counted by hand, and against what a real CPU pass keeps."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dpeq.groups import group
from dpeq.models import cost as cost_module
from dpeq.models.cost import Cost, count_macs, measure, parameter_count
from dpeq.models.registry import PRESETS, build_model
from dpeq.models.vit import Attention
from dpeq.nn.fields import FieldType
from dpeq.nn.separable import DepthwiseSteerableConv, SeparableConv
from dpeq.nn.spectral import GroupPointwise, group_fourier
from dpeq.nn.steerable import SteerableConv


def regular(name: str, fields: int) -> FieldType:
    return FieldType(group(name), "regular", fields)


def test_the_examples_of_the_module_hold():
    results = doctest.testmod(cost_module)
    assert results.attempted >= 3
    assert results.failed == 0


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 15, 15), 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(6, 6, 5, groups=6, padding=2), (6, 7, 7), 7 * 7 * 6 * 25),
        (nn.Conv2d(6, 4, 3, groups=2), (6, 7, 7), 5 * 5 * 4 * 3 * 9),
        (nn.Conv3d(2, 5, 3, padding=1), (2, 6, 5, 4), 6 * 5 * 4 * 5 * 2 * 27),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2), 12 * 7),
        (nn.Linear(6, 5), (9, 6), 9 * 6 * 5),  # nine tokens
        (nn.Sequential(nn.GroupNorm(2, 4), nn.Mish(), nn.AvgPool2d(2)), (4, 8, 8), 0),
    ],
)
def test_plain_layers_cost_what_a_hand_counts(layer, shape, expected):
    assert count_macs(layer, shape) == expected


def test_attention_costs_four_projections_and_two_products_of_tokens():
    tokens, hidden = 11, 12
    assert count_macs(Attention(hidden, heads=3), (tokens, hidden)) == 4 * tokens * hidden**2 + 2 * tokens**2 * hidden


def test_a_matrix_times_a_vector_counts_too():
    class Score(nn.Module):
        def __init__(self):
            super().__init__()
            self.direction = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x @ self.direction

    assert count_macs(Score(), (5, 6)) == 5 * 6


@pytest.mark.parametrize(("name", "spatial"), [("D4", (9, 9)), ("C4", (9, 9)), ("axial-D4", (5, 5, 4))])
def test_a_full_group_convolution_costs_the_plain_convolution_of_its_channels(name, spatial):
    """All |G| n x |G| m channel pairs meet at every position; only |G| n m filters among them are free."""
    n, m, order, taps = 2, 3, group(name).order, 3 ** len(spatial)
    layer = SteerableConv(regular(name, n), regular(name, m), bias=False)
    expected = math.prod(spatial) * (order * n) * (order * m) * taps
    assert count_macs(layer, (order * n, *spatial)) == expected
    assert count_macs(layer.plain(), (order * n, *spatial)) == expected
    # An image uses every parameter |G| times per position where a plain convolution uses it once.
    free_taps = layer.weight.shape[3]  # the band limit leaves fewer than all taps free
    assert expected / parameter_count(layer) == pytest.approx(order * math.prod(spatial) * taps / free_taps)


def test_expanding_filters_is_not_charged_to_an_image():
    """All of a batch of one counts the product of coefficients and basis; what a second image adds does not."""
    layer = SteerableConv(regular("D4", 2), regular("D4", 3), bias=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 16, 4, 4))
    expansion = layer.weight.numel() * layer.basis.shape[1]
    assert counter.get_total_flops() // 2 - count_macs(layer, (16, 4, 4)) == expansion > 0


@pytest.mark.parametrize("name", ["C4", "D4", "axial-D2", "O", "Oh"])
def test_separable_layers_cost_the_sum_of_cubes_of_their_irreps(name):
    """Depthwise: one filter per channel. Pointwise: two Fourier transforms and sum d^3 products per pair of fields."""
    whole, n, m = group(name), 2, 3
    spatial = (6, 6) if whole.dim == 2 else (4, 4, 3)
    positions, order = math.prod(spatial), whole.order
    depthwise = DepthwiseSteerableConv(regular(name, n))
    assert count_macs(depthwise, (order * n, *spatial)) == positions * order * n * 3**whole.dim
    pointwise = GroupPointwise(regular(name, n), regular(name, m))
    transforms = order**2 * (n + m)
    products = group_fourier(whole).products
    assert products == {"C4": 6, "D4": 12, "axial-D2": 4, "O": 64, "Oh": 128}[name]  # real irreps, counted by hand
    assert count_macs(pointwise, (order * n, *spatial)) == positions * (transforms + products * n * m)
    both = SeparableConv(regular(name, n), regular(name, m))
    parts = count_macs(depthwise, (order * n, *spatial)) + count_macs(pointwise, (order * n, *spatial))
    assert count_macs(both, (order * n, *spatial)) == parts


def test_memory_of_activations_is_what_backward_reads():
    """conv: its input; Mish: its input; group norm: its input, means and inverse deviations; linear: its input."""
    h, w, c, groups, classes = 8, 6, 4, 2, 3
    model = nn.Sequential(
        nn.Conv2d(1, c, 3, padding=1), nn.Mish(), nn.GroupNorm(groups, c), nn.Flatten(), nn.Linear(c * h * w, classes)
    )
    floats = h * w + c * h * w + (c * h * w + 2 * groups) + c * h * w
    assert measure(model, (1, h, w)).activation_bytes == 4 * floats


def test_a_tensor_that_two_layers_read_is_kept_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    assert measure(Twice(), (2, 5, 5)).activation_bytes == 4 * 2 * 25


@pytest.mark.parametrize("name", ["eqresnet9-small", "eqresnet9-3d-tiny"])
def test_a_network_keeps_on_a_cpu_what_was_measured_without_one(name):
    model = build_model(PRESETS[name].spec, 1, 2, seed=0)
    shape = (1, *[16] * PRESETS[name].dim)

    def kept_bytes(batch: int) -> int:
        kept = []
        with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            output = model(torch.rand(batch, *shape))
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        assert output.requires_grad
        return sum(sizes.values())

    expected = kept_bytes(4) - kept_bytes(3)
    assert measure(model, shape).activation_bytes == expected > 0


def test_a_unit_has_one_gradient_of_every_trainable_parameter():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight.requires_grad_(False)
    cost = measure(model, (1, 8, 8))
    assert cost.parameters == 4 * 9 + 4 + 4
    assert cost.per_unit_gradient_bytes == 4 * cost.parameters
    model[1].bias = model[0].bias
    assert parameter_count(model) == cost.parameters - 4, "tied parameters count once"
    model[1].bias = nn.Parameter(torch.zeros(4))
    assert measure(model.double(), (1, 8, 8)).per_unit_gradient_bytes == 8 * cost.parameters
    assert cost.macs == 36 * 4 * 9 + 16 * 4 * 4 * 9, "frozen layers compute too"


def test_the_noise_is_as_long_as_it_says():
    """Against drawn noise: the mean square length of P normal numbers of deviation sigma C."""
    cost = Cost(parameters=400, macs=1, activation_bytes=1, per_unit_gradient_bytes=1600)
    drawn = 1.5 * 0.7 * torch.randn(2000, 400, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert cost.noise_norm(1.5, 0.7) == pytest.approx(float(drawn.square().sum(1).mean().sqrt()), rel=0.01)


def test_the_measured_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    model[0].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    measure(model, (1, 8, 8))
    assert [m.training for m in model.modules()] == [False, True, False, False]
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
