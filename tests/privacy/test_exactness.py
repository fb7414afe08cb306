"""One step is one step: however it is cut, in whatever order views stand, and whoever else is there.

The sensitivity that the accountant assumes is held against networks of every kind, at inputs of every kind.
"""

import logging
import math
from collections.abc import Callable

import pytest
import torch
from helpers import unit_gradients_by_autograd
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from dpeq.config import load_config
from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.family import FamilySpec
from dpeq.models.registry import PRESETS, build_model
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec
from dpeq.nn import UNIT_LAYERS
from dpeq.nn.activations import NormActivation
from dpeq.nn.fields import FieldType
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.pooling import AntialiasedPool
from dpeq.nn.position import PositionEmbedding
from dpeq.nn.separable import DepthwiseSteerableConv
from dpeq.nn.spectral import GroupPointwise, SpectralMix
from dpeq.nn.standardized import StandardizedConv
from dpeq.nn.steerable import SteerableConv
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import GradientStatistics, PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.loop import train
from dpeq.training.prepare import prepare
from dpeq.training.state import OptimizerSettings

WAYS = ["fixed", "automatic", "per_layer"]
BAR = 1e-5  # how much further than C a unit may move a sum; what we promise is 0


class Offset(nn.Module):
    """A layer that nobody registered a grad sampler for: torch.func runs it row by row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.slope = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(x + self.shift)


def foreign() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Offset(4), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def family(group: str, restriction: str, fields: tuple[int, int, int], block: str) -> Callable[[], nn.Module]:
    return lambda: FamilySpec(group, restriction, fields, (1, 1, 1), (0, 0, 0), block).build(1, 3)


# Their last maps have several pixels: a norm over the equal numbers of a symmetric image on one pixel divides rounding
# by rounding, and a network of such norms has no digits that could be compared.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "steerable": (family("D4", "halved", (1, 2, 2), "full"), (8, 8)),
    "separable": (family("D4", "none", (2, 2, 2), "separable"), (8, 8)),
    "C8": (family("C8", "none", (1, 1, 2), "full"), (8, 8)),
    "SO2": (family("SO2", "none", (1, 1, 2), "full"), (8, 8)),
    "volume": (family("axial-C4", "none", (1, 1, 2), "full"), (8, 8, 4)),
    "volume, separable": (family("axial-D2", "none", (1, 1, 2), "separable"), (8, 8, 4)),
    "resnet9": (lambda: ResNet9Spec("D4", "halved", (2, 2, 4), (1, 1, 2)).build(1, 3), (16, 16)),
    "vit": (lambda: ViTSpec(2, (8, 8), (4, 4), 8, 1, 2, 8).build(1, 3), (8, 8)),
    "wide-resnet": (lambda: WideResNetSpec(2, 10, 0.25, 8).build(1, 3), (8, 8)),
    "foreign": (foreign, (8, 8)),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (4, 4)),
}
OUR_KINDS = ["steerable", "separable", "C8", "SO2", "volume", "volume, separable"]


def build(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = NETWORKS[kind][0]()
    with torch.no_grad():
        for p in net.parameters():  # away from the symmetric start, where some gradients vanish
            p += 0.1 * torch.randn_like(p)
    return net.to(dtype)


def images(kind: str, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, *NETWORKS[kind][1], generator=torch.Generator().manual_seed(seed))


def plan(*, clip: float = 0.5, views: int = 1, clipping: str = "fixed") -> PrivacyPlan:
    return PrivacyPlan(
        epsilon_target=math.inf,
        delta=1e-5,
        unit="patient",
        sample_rate=0.5,
        steps=4,
        expected_batch_size=8,
        noise_multiplier=0.0,
        max_grad_norm=clip,
        public_units=1000,
        views=views,
        clipping=clipping,
        accountant="none",
        epsilon={},
    )


def clipped_sum(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    p: PrivacyPlan,
    cut: int,
    *,
    half: bool = False,
    weights: Tensor | None = None,
    statistics: GradientStatistics | None = None,
) -> Tensor:
    """The sum of one logical step, in physical batches of ``cut`` units."""
    wrapped, optimizer = UnitGradSampleModule(net, p.views), PlanOptimizer(torch.optim.SGD(net.parameters(), 1.0), p)
    optimizer.statistics = statistics
    for rows in torch.arange(len(x)).split(cut * p.views) if len(x) else ():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = wrapped(x[rows])
        wrapped.backward(logits, y[rows], weights)
        optimizer.accumulate()
    wrapped.detach()
    return optimizer.take_sum().detach()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# One step for any cut and any order


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OUR_KINDS)
def test_a_step_is_the_same_for_any_cut_and_any_order_of_views(kind, way):
    units, views = 7, 3
    y = torch.arange(units).remainder(3).repeat_interleave(views)
    p = plan(views=views, clipping=way, clip=1.0)
    order = torch.cat([torch.randperm(views) + u * views for u in range(units)])
    for dtype, bar in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        net, x = build(kind, dtype), images(kind, units * views).to(dtype)
        whole = clipped_sum(net, x, y, p, units)
        assert float(whole.norm()) > 0.1
        for cut in (1, 2, 4):
            assert distance(clipped_sum(net, x, y, p, cut), whole) <= bar, (dtype, cut)
        assert distance(clipped_sum(net, x[order], y, p, units), whole) <= bar, dtype
        assert distance(clipped_sum(net, x.roll(1, dims=0), y, p, units), whole) > 0.01, (
            "a view of another unit is seen"
        )


@pytest.mark.parametrize("kind", OUR_KINDS)
def test_a_step_is_the_formula_from_single_sample_autograd(kind):
    """Per-layer and automatic clipping too; fixed clipping of one network is in test_clipping."""
    units, views = 5, 2
    net, x = build(kind, torch.float64), images(kind, units * views).double()
    y = torch.arange(units).remainder(3).repeat_interleave(views)
    each = unit_gradients_by_autograd(net, x, y, views)
    flat = [g.flatten(1) for g in each.values()]
    norms = torch.stack([g.norm(dim=1) for g in flat])
    for way in WAYS:
        c = PlanOptimizer(torch.optim.SGD(net.parameters(), 1.0), plan(clipping=way)).bound
        if way == "per_layer":
            factors = (c / math.sqrt(len(norms)) / norms.clamp(min=1e-300)).clamp(max=1)
        else:
            whole = norms.norm(dim=0).expand_as(norms)
            factors = (c / whole).clamp(max=1) if way == "fixed" else c / (whole + 0.01)
        expected = torch.cat([(g * f[:, None]).sum(dim=0) for g, f in zip(flat, factors, strict=True)])
        assert distance(clipped_sum(net, x, y, plan(views=views, clipping=way), 3), expected) <= 1e-9, way


# Sensitivity


SCALES = [0.0, 1e-30, 1e-3, 1.0, 1.0, 30.0, 1e4, 1e18, 1e30, 3e38, math.inf, -math.inf, math.nan]


@settings(max_examples=150)
@given(
    kind=st.sampled_from(sorted(NETWORKS)),
    way=st.sampled_from(WAYS),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 20.0]),
    views=st.integers(1, 3),
    others=st.lists(st.sampled_from(SCALES), max_size=5),
    added=st.lists(st.sampled_from(SCALES), min_size=3, max_size=3),
    place=st.integers(0, 5),
    half=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_one_unit_more_or_less_moves_the_sum_by_at_most_c(kind, way, clip, views, others, added, place, half, seed):
    """Pixels of any size in any view, some of them alone, wherever the unit stands.

    One unit to a physical batch, so that nobody's gradient depends on who else is there. Side by side, kernels round as
    the shape of the batch asks, and a network that divides rounding by rounding (a norm over a blank image) makes much
    of that little.
    """
    net, units, place = build(kind, seed=seed), len(others) + 1, min(place, len(others))
    x = images(kind, units * views, seed)
    others.insert(place, 1.0)
    for u, scale in enumerate(others):
        x[u * views : (u + 1) * views] *= scale
    for k in range(views):
        row = x[place * views + k]
        if seed % 2:
            row *= added[k]
        else:
            row[..., 1, 2] = added[k]  # one pixel alone
    y = torch.arange(units).remainder(3).repeat_interleave(views)
    p = plan(clip=clip, views=views, clipping=way)
    without = torch.arange(units * views).div(views, rounding_mode="floor") != place
    before = clipped_sum(net, x[without], y[without], p, 1, half=half)
    after = clipped_sum(net, x, y, p, 1, half=half)
    assert bool(after.isfinite().all())
    assert float((after - before).norm()) <= clip


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["linear", "foreign", "vit", "separable", "SO2"]),
    way=st.sampled_from(WAYS),
    units=st.integers(200, 500),
    place=st.integers(0, 199),
    cuts=st.tuples(st.integers(17, 300), st.integers(17, 300)),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    half=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_one_of_hundreds_moves_the_sum_by_at_most_c(kind, way, units, place, cuts, scale, half, seed):
    """All are alike and point the same way, so that sums are as large, and rounded as coarsely, as can be."""
    net = build(kind, seed=seed)
    x = images(kind, 1, seed) + 0.01 * images(kind, units, seed + 1)
    x[place] *= scale
    y, p = torch.zeros(units, dtype=torch.int64), plan(clip=0.01, clipping=way)
    after = clipped_sum(net, x, y, p, cuts[0], half=half)
    if way != "per_layer":
        assert float(after.norm()) > 0.01 * units * 0.3, "the units point the same way"
    without = torch.arange(units) != place
    before = clipped_sum(net, x[without], y[without], p, cuts[1], half=half)
    assert float((after - before).norm()) <= 0.01 * (1 + BAR)


@pytest.mark.parametrize("name", ["eqresnet9-small", "eqnet-xs"])
def test_how_many_stand_beside_moves_a_gradient_by_less_than_the_margin(name):
    """Of blank images too, at which norms see equal numbers, once biases have moved from zero."""
    net = build_model(PRESETS[name].spec, 1, 2, seed=0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    x, y, p = torch.zeros(16, 1, 28, 28), torch.zeros(16, dtype=torch.int64), plan(clip=1e12)
    x[1::2] = torch.randn(8, 1, 28, 28)
    x[2, 0, 5:9] = 1.0
    alone = [clipped_sum(net, x[i : i + 1], y[:1], p, 1) for i in range(3)]
    for beside in (2, 5, 16):
        wrapped = UnitGradSampleModule(net)
        wrapped.backward(wrapped(x[:beside]), y[:beside])
        found = torch.cat([q.grad_sample.flatten(1) for q in net.parameters()], dim=1).double()
        wrapped.detach()
        for i in range(min(3, beside)):
            assert distance(found[i], alone[i]) <= 1e-5, (beside, i)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["steerable", "separable", "SO2", "volume", "foreign"])
def test_units_without_a_finite_gradient_count_for_nothing(kind, way, caplog):
    """The others' sum is the same bit for bit; one unit to a physical batch, so that their gradients are, too."""
    net, p, views = build(kind), plan(views=2, clipping=way), 2
    x, y = images(kind, 5 * views), torch.arange(5).repeat_interleave(views) % 3
    x[2 * views + 1, ..., 3, 2] = math.inf
    x[4 * views] = math.nan
    sound = torch.tensor([u in (0, 1, 3) for u in range(5)]).repeat_interleave(views)
    with caplog.at_level(logging.WARNING):
        expected = clipped_sum(net, x[sound], y[sound], p, 1)
        assert caplog.records == []
        statistics = GradientStatistics()
        assert torch.equal(clipped_sum(net, x, y, p, 1, statistics=statistics), expected)
    assert (statistics.units, statistics.not_finite) == (5, 2)
    (record,) = caplog.records
    assert not any(c.isdigit() for c in record.getMessage())
    assert float((clipped_sum(net, x, y, p, 5) - expected).norm()) <= 1e-5 * float(expected.norm())
    nothing = clipped_sum(net, x[~sound], y[~sound], p, 2)
    assert torch.equal(nothing, torch.zeros_like(expected))


# Weights of classes, and samplers


@pytest.mark.parametrize("views", [1, 2])
def test_a_weighted_loss_is_weighted_unit_by_unit(views):
    """``cross_entropy(reduction="mean")`` would divide by the batch's weights, which ties units together."""
    net, weights = build("steerable", torch.float64), torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64)
    x, y = images("steerable", 4 * views).double(), torch.tensor([2, 0, 1, 2]).repeat_interleave(views)
    each = unit_gradients_by_autograd(net, x, y, views)
    wrapped = UnitGradSampleModule(net, views)
    wrapped.backward(wrapped(x), y, weights)
    for name, p in net.named_parameters():
        expected = each[name] * weights[y[::views]].view(-1, *[1] * p.dim())
        torch.testing.assert_close(p.grad_sample, expected, rtol=1e-9, atol=1e-12)


def test_weights_of_another_number_of_classes_are_refused():
    net = build("linear")
    wrapped = UnitGradSampleModule(net)
    with pytest.raises(RuntimeError, match="weight tensor should be defined either for all 3 classes"):
        wrapped.backward(wrapped(images("linear", 2)), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(ConfigError, match=r"class_weights has 3 numbers for the 2 classes"):
        prepare(load_config("pneumoniamnist", ["training.class_weights=[1,2,3]"]))


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, batch_size=4, shuffle=True),
        lambda data: DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * len(data), 8)),
        lambda data: data,
    ],
    ids=["shuffled", "weighted", "a plain data set"],
)
def test_training_takes_no_loader(loader):
    data = TensorDataset(images("linear", 8), torch.zeros(8, dtype=torch.int64))
    arguments = {"ledger": object(), "randomness": object(), "settings": OptimizerSettings(0.1)}
    with pytest.raises(ConfigError, match="independent coins of one rate, which loaders with shuffled or weighted"):
        train(build("linear"), loader(data), plan(), device=torch.device("cpu"), **arguments)


@pytest.mark.parametrize("sampling", ["shuffle", "weighted", "uniform", ""])
def test_a_configuration_cannot_ask_for_other_sampling(sampling):
    with pytest.raises(ConfigError, match=r"privacy\.sampling is .*independent coins of one rate.*class_weights"):
        load_config("pneumoniamnist", [f"privacy.sampling={sampling or 'null'}" if sampling else "privacy.sampling=''"])


# Half precision


def half_layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Every registered layer, and the shape of one row of its input."""
    d4, so2, axial = group("D4"), group("SO2"), group("axial-C4")
    volume = FieldType(axial, "trivial", 2), FieldType(axial, "regular", 2)
    regular = FieldType(d4, "regular", 2)
    fourier = FieldType(so2, "fourier:1", 2)
    return {
        "SteerableConv": (SteerableConv(regular, FieldType(d4, "regular", 3)), (16, 8, 8)),
        "SteerableConv of a small map": (SteerableConv(regular, FieldType(d4, "regular", 8)), (16, 2, 2)),
        "SteerableConv off the grid": (SteerableConv(fourier, fourier), (6, 8, 8)),
        "SteerableConv in 3D": (SteerableConv(*volume), (2, 6, 6, 3)),
        "EquivariantGroupNorm": (EquivariantGroupNorm(regular, 1), (16, 8, 8)),
        "EquivariantGroupNorm of Fourier fields": (EquivariantGroupNorm(fourier, 1), (6, 8, 8)),
        "DepthwiseSteerableConv": (DepthwiseSteerableConv(regular), (16, 8, 8)),
        "SpectralMix": (GroupPointwise(regular, FieldType(d4, "regular", 3)), (16, 8, 8)),
        "StandardizedConv": (StandardizedConv(2, 3, 5), (3, 8, 8)),
        "PositionEmbedding": (PositionEmbedding(6, 5), (6, 5)),
        "NormActivation": (NormActivation(FieldType(d4, "irrep:2", 3)), (6, 8, 8)),
    }  # fmt: skip


class Reading(nn.Module):
    """Three fixed numbers per row."""

    def forward(self, y: Tensor) -> Tensor:
        flat = y.flatten(1).float()
        places = torch.arange(flat.shape[1], dtype=torch.float32).view(-1, 1)
        return (flat[:, :, None] * torch.sin(places * torch.tensor([[1.0, 1.7, 2.3]]) + 0.5)).sum(dim=1) / 8


class FirstLayer(nn.Module):
    """What makes the layer's input half precision: a 1x1 convolution or a linear map under autocast."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.map = {1: nn.Linear, 2: nn.Conv2d, 3: nn.Conv3d}[dim](channels, channels, *([1] if dim > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


@pytest.mark.parametrize("first", [True, False], ids=["inside", "first"])
@pytest.mark.parametrize("name", half_layers())
def test_every_layer_takes_half_precision(name, first):
    torch.manual_seed(1)
    layer, shape = half_layers()[name]
    net = nn.Sequential(
        *([FirstLayer(shape[0 if len(shape) > 2 else -1], len(shape) - 1)] if first else []), layer, Reading()
    )
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    x, y, views = torch.randn(6, *shape), torch.tensor([0, 0, 1, 1, 2, 2]), 2
    found = []
    for half in (False, True):
        wrapped = UnitGradSampleModule(net, views)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = wrapped(x)
        wrapped.backward(logits, y)
        assert all(p.grad_sample.dtype == torch.float32 for p in net.parameters())
        found.append(torch.cat([p.grad_sample.flatten(1) for p in layer.parameters()], dim=1))
        wrapped.detach()
    assert distance(found[1], found[0]) <= 0.03
    if first:
        assert distance(found[1], found[0]) > 1e-5, "half precision it is"


def test_no_registered_layer_is_forgotten():
    tested = {type(m) for layer, _ in half_layers().values() for m in layer.modules()}
    assert set(UNIT_LAYERS) <= tested
    assert SpectralMix in tested


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_half_precision_gradients_are_close_to_single_ones(kind):
    """Each against the whole batch's: a unit whose gradient nearly vanishes is mostly rounding."""
    net = build(kind)
    x, y = images(kind, 12), torch.arange(12).remainder(3)
    found = []
    for half in (False, True):
        wrapped = UnitGradSampleModule(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = wrapped(x)
        wrapped.backward(logits, y)
        found.append(torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], dim=1))
        wrapped.detach()
    error = (found[1] - found[0]).norm(dim=1) / found[0].norm(dim=1)
    assert 1e-5 < float(error.median()) <= 0.03, "half precision, and close to single"


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_half_precision_gradients_of_a_unit_do_not_depend_on_the_others(kind):
    """Where statistics or transforms are rounded to half precision by batch, everybody's gradient moves by percents."""
    net = build(kind)
    x, y = images(kind, 33), torch.arange(33).remainder(3)
    p = plan(clip=1e9)
    with_all = clipped_sum(net, x, y, p, 33, half=True)
    by_part = clipped_sum(net, x, y, p, 8, half=True)
    assert distance(by_part, with_all) <= 1e-5


def test_an_antialiased_pool_takes_half_precision():
    x = torch.randn(2, 3, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = AntialiasedPool()(x.bfloat16())
    torch.testing.assert_close(found.float(), AntialiasedPool()(x), rtol=0.05, atol=0.05)
