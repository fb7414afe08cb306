"""Per-unit gradients against single-sample autograd; the clipped, noised sum against its formula."""

import math

import pytest
import torch
from helpers import relative_error, unit_gradients_by_autograd
from hypothesis import given
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import nn

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.resnet9 import EqResNet9, ResNet9Spec
from dpeq.nn.blocks import ConvBlock
from dpeq.nn.fields import FieldType
from dpeq.nn.invariant import InvariantPool
from dpeq.nn.steerable import SteerableConv
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness, Stream

SPATIAL = {2: (8, 8), 3: (6, 6, 5)}


def plan(sigma: float, *, clip: float = 0.5, batch: int = 8, views: int = 1, steps: int = 5) -> PrivacyPlan:
    """A plan with a chosen sigma: these tests look at the mechanism, not at the accounting."""
    return PrivacyPlan(
        epsilon_target=math.inf if sigma == 0 else 100.0,
        delta=1e-5,
        unit="image",
        neighbouring="add_remove_one_unit",
        sampling="poisson",
        sample_rate=0.5,
        steps=steps,
        expected_batch_size=batch,
        noise_multiplier=sigma,
        max_grad_norm=clip,
        views=views,
        public_units=1000,
        accountant="none" if sigma == 0 else "prv",
        accountant_note=None,
        mu=None,
        epsilon={} if sigma == 0 else {"prv_upper": 99.0},
    )


def network(name: str, in_channels: int = 1) -> nn.Module:
    g = group(name)
    image, hidden = FieldType(g, "trivial", in_channels), FieldType(g, "regular", 2)
    net = nn.Sequential(
        ConvBlock(image, hidden, norm_groups=1, pool=True),
        ConvBlock(hidden, FieldType(g, "regular", 4), norm_groups=2),
        InvariantPool(FieldType(g, "regular", 4)),
        nn.Linear(4, 3),
    )
    for p in net.parameters():  # away from the symmetric start, where scale and shift of the norm are 1 and 0
        nn.init.normal_(p, std=0.5)
    return net


def batch(dim: int, units: int, views: int = 1, in_channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(units * views, in_channels, *SPATIAL[dim])
    return x, torch.randint(0, 3, (units,)).repeat_interleave(views)


def optimizer(net: nn.Module, p: PrivacyPlan) -> PlanOptimizer:
    return PlanOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), p)


def noise(step: int = 1) -> Stream:
    return Randomness.create(0).stream("noise", step)


@pytest.mark.parametrize("name", ["C4", "D4", "axial-C4", "axial-D4"])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("units", [1, 4])
def test_per_unit_gradients_equal_single_sample_autograd(name, views, units):
    net = network(name, in_channels=2)
    x, y = batch(group(name).dim, units, views, in_channels=2)
    expected = unit_gradients_by_autograd(net, x, y, views)
    wrapped = UnitGradSampleModule(net, views)
    wrapped.backward(wrapped(x), y)
    for key, p in net.named_parameters():
        assert p.grad_sample.shape == (units, *p.shape)
        assert relative_error(p.grad_sample, expected[key]) <= 1e-5, key


@pytest.mark.parametrize(
    "spec",
    [
        ResNet9Spec("D4", "halved", (2, 3, 4), (1, 1, 2)),
        ResNet9Spec("axial-C4", "invariant", (1, 2, 2), (1, 1, 2), stem_pool=True),
    ],
)
def test_per_unit_gradients_of_the_whole_resnet(spec):
    net = EqResNet9(spec, 1, 3)
    x, y = batch(group(spec.group).dim, 3, views=2)
    expected = unit_gradients_by_autograd(net, x, y, 2)
    wrapped = UnitGradSampleModule(net, 2)
    wrapped.backward(wrapped(x), y)
    for key, p in net.named_parameters():
        assert relative_error(p.grad_sample, expected[key]) <= 1e-5, key


def test_our_layers_work_under_plain_opacus_too():
    net = network("D4")
    x, y = batch(2, 3)
    expected = unit_gradients_by_autograd(net, x, y)
    stock = GradSampleModule(net)  # its default: mean reduction, strict
    nn.functional.cross_entropy(stock(x), y).backward()
    for key, p in net.named_parameters():
        assert relative_error(p.grad_sample, expected[key]) <= 1e-5, key


def test_detach_gives_back_a_plain_network():
    net = network("C4")
    wrapped = UnitGradSampleModule(net)
    x, y = batch(2, 3)
    assert wrapped.detach() is net
    nn.functional.cross_entropy(net(x), y).backward()
    assert all(p.grad is not None and not hasattr(p, "grad_sample") for p in net.parameters())


def clipped_sum(net: nn.Module, x: torch.Tensor, y: torch.Tensor, clip: float, views: int) -> torch.Tensor:
    """The formula, from single-sample autograd."""
    gradients = unit_gradients_by_autograd(net, x, y, views)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    return (flat * (clip / flat.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize("views", [1, 2])
def test_one_step_is_the_formula_for_any_physical_batch(cut, views):
    net = network("D4").double()
    x, y = batch(2, 7, views)
    x = x.double()
    p = plan(0.0, views=views)
    bound = optimizer(net, p).bound  # a little below C, for rounding
    assert p.max_grad_norm * (1 - 2e-4) < bound < p.max_grad_norm
    expected = clipped_sum(net, x, y, bound, views) / p.expected_batch_size
    before = nn.utils.parameters_to_vector(net.parameters()).clone()
    wrapped, opt = UnitGradSampleModule(net, views), optimizer(net, p)
    for rows in torch.arange(7 * views).split(cut * views):
        wrapped.backward(wrapped(x[rows]), y[rows])
        opt.accumulate()
    opt.finish(noise())
    moved = (before - nn.utils.parameters_to_vector(net.parameters())).detach()
    assert relative_error(moved, expected) <= 1e-9


def test_an_empty_step_moves_the_weights_by_noise_of_the_right_size():
    p = plan(2.0, clip=0.5, batch=10)
    net = nn.Linear(400, 50)
    UnitGradSampleModule(net)
    opt = optimizer(net, p)
    before = nn.utils.parameters_to_vector(net.parameters()).clone()
    opt.finish(noise())
    moved = (before - nn.utils.parameters_to_vector(net.parameters())).detach()
    n = len(moved)
    expected = p.noise_multiplier * p.max_grad_norm / p.expected_batch_size
    assert float(moved.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * n))
    assert abs(float(moved.mean())) < 4 * expected / math.sqrt(n)


def test_noise_does_not_depend_on_how_many_units_or_physical_batches_there_were():
    """The update minus the noiseless one is the same noise, with 0, 1 or 5 units in 1 or 3 physical batches."""
    noises = []
    for units, cut in ((0, 1), (1, 1), (5, 2), (5, 5)):
        moves = []
        for sigma in (0.0, 1.5):
            torch.manual_seed(1)
            net = network("C4").double()
            x, y = batch(2, units)
            before = nn.utils.parameters_to_vector(net.parameters()).clone()
            wrapped, opt = UnitGradSampleModule(net), optimizer(net, plan(sigma))
            for rows in torch.arange(units).split(cut) if units else ():
                wrapped.backward(wrapped(x[rows].double()), y[rows])
                opt.accumulate()
            opt.finish(noise())
            moves.append((before - nn.utils.parameters_to_vector(net.parameters())).detach())
        noises.append(moves[1] - moves[0])
    for other in noises[1:]:
        torch.testing.assert_close(other, noises[0])


def test_noise_is_fresh_every_step():
    net = nn.Linear(200, 20)
    UnitGradSampleModule(net)
    opt = optimizer(net, plan(1.0))
    steps = []
    for step in (1, 2):
        before = nn.utils.parameters_to_vector(net.parameters()).clone()
        opt.finish(noise(step))
        steps.append((before - nn.utils.parameters_to_vector(net.parameters())).detach())
    correlation = torch.corrcoef(torch.stack(steps))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(len(steps[0]))


@given(
    scale=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e3, 1e18, math.inf, -math.inf, math.nan]),
    views=st.integers(1, 3),
    units=st.integers(0, 3),
    clip=st.sampled_from([1e-2, 1.0, 50.0]),
    seed=st.integers(0, 100),
)
def test_one_unit_moves_the_clipped_sum_by_at_most_the_clip_norm(scale, views, units, clip, seed):
    """Sensitivity: add one unit with any pixels; the sum of clipped gradients moves by at most C (1 + 1e-5)."""
    torch.manual_seed(seed)
    net = network("C4")
    x, y = batch(2, units + 1, views)
    x[units * views :] *= scale
    p = plan(0.0, clip=clip, views=views)
    wrapped, opt = UnitGradSampleModule(net, views), optimizer(net, p)
    sums = []
    for present in (units, units + 1):
        rows = slice(0, present * views)
        if present:
            wrapped.backward(wrapped(x[rows]), y[rows])
            opt.accumulate()
        sums.append(opt.take_sum())
    assert bool(sums[1].isfinite().all())
    assert float((sums[1] - sums[0]).detach().double().norm()) <= clip


class Scale(nn.Module):
    """A layer with a parameter of its own that nobody registered a grad sampler for."""

    def __init__(self, inner: nn.Module | None = None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = inner or nn.Identity()

    def forward(self, x):
        return self.inner(x) * self.scale


class OwnConv(SteerableConv):
    pass


REFUSED = {
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "Layer '1' is a batch norm"),
    "running statistics": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=False, track_running_stats=True)),
        "running statistics",
    ),
    "a layer of ours in a container with a parameter": (
        lambda: Scale(SteerableConv(FieldType(group("C4"), "trivial", 1), FieldType(group("C4"), "regular", 1))),
        r"Layer '' \(Scale\) has no registered grad sampler and is or holds a layer of dpeq's",
    ),
    "a subclass": (
        lambda: OwnConv(FieldType(group("C4"), "trivial", 1), FieldType(group("C4"), "regular", 1)),
        "no registered grad sampler",
    ),
}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_break_the_guarantee_are_refused(case, views):
    make, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        UnitGradSampleModule(make(), views)


def test_a_network_that_turns_one_row_into_many_is_refused():
    """Each of the many would be clipped by itself, and a unit could contribute several times C."""

    class Fold(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 16)

    class Unfold(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 4, 3).mean(1)

    wrapped = UnitGradSampleModule(nn.Sequential(Fold(), nn.Linear(16, 3), Unfold()))
    with pytest.raises(ConfigError, match="saw 16 rows of a batch of 4"):
        wrapped.backward(wrapped(torch.randn(4, 1, 8, 8)), torch.zeros(4, dtype=torch.int64))


def test_unused_parameters_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    net.unused = nn.Linear(2, 2)
    net.forward = lambda x: net[1](net[0](x))
    wrapped = UnitGradSampleModule(net)
    with pytest.raises(ConfigError, match=r"unused\.weight' got no gradient"):
        wrapped.backward(wrapped(torch.randn(4, 1, 8, 8)), torch.zeros(4, dtype=torch.int64))


def test_after_views_the_network_is_right_under_plain_opacus():
    net = network("D4")
    wrapped = UnitGradSampleModule(net, views=3)
    x, y = batch(2, 2, views=3)
    wrapped.backward(wrapped(x), y)
    net = wrapped.detach()
    expected = unit_gradients_by_autograd(net, x, y)
    stock = GradSampleModule(net)
    nn.functional.cross_entropy(stock(x), y).backward()
    for key, p in net.named_parameters():
        assert relative_error(p.grad_sample, expected[key]) <= 1e-5, key


def test_half_precision_gradients_are_clipped_by_their_full_precision_norm():
    net = nn.Linear(64, 3, bias=False).to(torch.bfloat16)
    UnitGradSampleModule(net)
    opt = optimizer(net, plan(0.0, clip=0.5))
    net.weight.grad_sample = torch.randn(1, 3, 64, dtype=torch.bfloat16)
    opt.accumulate()
    assert float(opt.take_sum().norm()) <= 0.5


def test_opacus_own_step_is_refused():
    """It would move the weights with noise that does not come from the run's key."""
    net = network("C4")
    wrapped, opt = UnitGradSampleModule(net), optimizer(net, plan(1.0))
    x, y = batch(2, 2)
    wrapped.backward(wrapped(x), y)
    before = nn.utils.parameters_to_vector(net.parameters()).clone()
    with pytest.raises(RuntimeError, match="finish"):
        opt.step()
    assert torch.equal(nn.utils.parameters_to_vector(net.parameters()), before)


@pytest.mark.parametrize("views", [1, 3])
def test_an_empty_batch_has_no_gradients_in_any_layer(views):
    """Opacus' own sampler of convolutions answers zero rows with one gradient; nothing may be counted then."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    wrapped = UnitGradSampleModule(model, views)
    wrapped.backward(wrapped(torch.zeros(0, 1, 5, 5)), torch.zeros(0, dtype=torch.long))
    assert all(p.grad_sample.shape == (0, *p.shape) for p in model.parameters())


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("fields", [(1, 1, 1), (3, 6, 12), (3, 3, 5)])
@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30])
def test_a_unit_that_is_not_finite_touches_no_other_one_of_any_batch(fields, views, broken):
    """Odd numbers of fields, even numbers of units: two rows of one matrix product were once of different units."""
    torch.manual_seed(0)
    for name in ("D4", "C4", "axial-C4"):
        net = EqResNet9(ResNet9Spec(name, "halved", fields, (1, 1, 1), stem_pool=True), 1, 3)
        x, y = batch(group(name).dim, 6, views)
        wrapped = UnitGradSampleModule(net, views)
        wrapped.backward(wrapped(x), y)
        clean = {key: p.grad_sample.clone() for key, p in net.named_parameters()}
        for bad in ([0], [2, 3], [0, 2, 4], [1, 3, 5]):
            spoilt = x.clone()
            for unit in bad:
                spoilt[unit * views : (unit + 1) * views] = broken
            for p in net.parameters():
                p.grad_sample = None
            wrapped.backward(wrapped(spoilt), y)
            good = [u for u in range(6) if u not in bad]
            for key, p in net.named_parameters():
                assert torch.equal(p.grad_sample[good], clean[key][good]), (name, key, bad)
        wrapped.detach()
