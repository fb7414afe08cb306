"""The mechanism by itself: factors, norms and sums of given gradients, against formulas and Opacus; the optimisers."""

import copy
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.optimizers import DPPerLayerOptimizer
from torch import nn

from dpeq.privacy.optimizer import GradientStatistics, PlanOptimizer, clip_factors
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.state import OptimizerSettings, TrainingState

WAYS = ["fixed", "automatic", "per_layer"]
ODD_NORMS = [0.0, 5e-324, 1e-45, 1e-38, 1e-20, 0.3, 1.0, 1e19, 1e38, 1e200, 1.7e308, math.inf, math.nan]


def plan(sigma: float = 0.0, *, clip: float = 0.5, batch: int = 8, steps: int = 6, **changes) -> PrivacyPlan:
    """A plan with a chosen sigma: these tests look at the mechanism, not at the accounting."""
    values = {
        "epsilon_target": math.inf if sigma == 0 else 100.0,
        "delta": 1e-5,
        "unit": "image",
        "sample_rate": 0.5,
        "steps": steps,
        "expected_batch_size": batch,
        "noise_multiplier": sigma,
        "max_grad_norm": clip,
        "public_units": 1000,
        "accountant": "none" if sigma == 0 else "prv",
        "epsilon": {} if sigma == 0 else {"prv_upper": 99.0},
    }
    return PrivacyPlan(**{**values, **changes})


class Bare(nn.Module):
    """Parameters of given sizes that no layer uses; their gradients are given by hand."""

    def __init__(self, *sizes: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.each = nn.ParameterList(nn.Parameter(torch.zeros(n, dtype=dtype)) for n in sizes)


def mechanism(net: nn.Module, p: PrivacyPlan) -> PlanOptimizer:
    return PlanOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), p)


def given_sum(opt: PlanOptimizer, *gradients: torch.Tensor, cut: int | None = None) -> torch.Tensor:
    """The clipped sum of gradients ``[units, n]``, one tensor per parameter, in physical batches of ``cut``."""
    units = len(gradients[0])
    for rows in torch.arange(units).split(cut or max(1, units)):
        for p, g in zip(opt.params, gradients, strict=True):
            p.grad_sample = g[rows].clone()
        opt.accumulate()
    return opt.take_sum()


# Factors


def test_factors_by_hand():
    """Units with norms (3, 4) -> 5, (0, 0.5) -> 0.5 and (0, 0) -> 0; C = 2."""
    norms = torch.tensor([[3.0, 0.0, 0.0], [4.0, 0.5, 0.0]], dtype=torch.float64)
    whole = torch.tensor([0.4, 1.0, 1.0], dtype=torch.float64)
    assert torch.equal(clip_factors(norms, 2.0, "fixed"), whole.expand(2, 3))
    whole = torch.tensor([2 / 5.01, 2 / 0.51, 2 / 0.01], dtype=torch.float64)
    torch.testing.assert_close(clip_factors(norms, 2.0, "automatic"), whole.expand(2, 3), rtol=1e-14, atol=0)
    share = math.sqrt(2.0)  # 2 / sqrt(2), for each of two tensors
    by_layer = torch.tensor([[share / 3, 1.0, 1.0], [share / 4, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(clip_factors(norms, 2.0, "per_layer"), by_layer, rtol=1e-14, atol=0)


@given(
    norms=st.lists(st.lists(st.sampled_from(ODD_NORMS) | st.floats(0, 1e300), min_size=3, max_size=3), min_size=1),
    bound=st.floats(1e-6, 1e6),
    way=st.sampled_from(WAYS),
    single=st.booleans(),
)
def test_whatever_the_norms_no_unit_weighs_more_than_the_bound(norms, bound, way, single):
    given_norms = torch.tensor(norms, dtype=torch.float64)
    given_norms = given_norms.float() if single else given_norms
    factors = clip_factors(given_norms, bound, way)
    assert factors.shape == given_norms.shape
    assert bool(factors.isfinite().all())
    assert bool((factors >= 0).all())
    finite = given_norms.isfinite().all(dim=0)
    assert bool((factors[:, ~finite] == 0).all())
    scaled = torch.where(finite, given_norms.double() * factors.double(), 0.0)
    rounding = 1e-6 if single else 1e-12
    assert float(scaled.square().sum(dim=0).max()) <= bound**2 * (1 + rounding)
    if way == "fixed":
        assert bool((factors <= 1).all())


@pytest.mark.parametrize("norm", [1.0, 1e3, 1e30])
def test_automatic_clipping_gives_large_gradients_the_bound(norm):
    scaled = norm * float(clip_factors(torch.tensor([[norm]], dtype=torch.float64), 3.0, "automatic"))
    assert scaled == pytest.approx(3.0, rel=1.01 * 0.01 / norm + 1e-12)
    assert scaled <= 3.0


def test_per_layer_clipping_is_opacus_own():
    torch.manual_seed(2)
    gradients = [torch.randn(7, n, dtype=torch.float64) * s for n, s in ((5, 3.0), (20, 0.02), (3, 0.4))]
    ours = Bare(5, 20, 3, dtype=torch.float64)
    p = plan(clipping="per_layer")
    opt = mechanism(ours, p)
    found = given_sum(opt, *gradients)

    theirs = Bare(5, 20, 3, dtype=torch.float64)
    share = opt.bound / math.sqrt(3)
    reference = DPPerLayerOptimizer(
        torch.optim.SGD(theirs.parameters(), 1.0),
        noise_multiplier=0.0,
        max_grad_norm=[share] * 3,
        expected_batch_size=1,
    )
    for parameter, g in zip(theirs.parameters(), gradients, strict=True):
        parameter.grad_sample = g
    reference.clip_and_accumulate()
    expected = torch.cat([parameter.summed_grad for parameter in theirs.parameters()])
    torch.testing.assert_close(found, expected, rtol=3e-5, atol=1e-12)  # Opacus adds 1e-6 to every norm
    norms = [float((g.norm(dim=1) > share).double().mean()) for g in gradients]
    assert max(norms) == 1.0
    assert min(norms) == 0.0, "some tensor is clipped and some is not"


# Norms and sums


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_parameters_are_clipped_by_their_true_norm(way, dtype):
    """In single precision the norm of a million equal numbers comes out 4e-4 too small."""
    opt = mechanism(Bare(1_000_003, 5, dtype=dtype), plan(clipping=way))
    total = given_sum(opt, torch.full((1, 1_000_003), 0.1, dtype=dtype), torch.full((1, 5), 0.1, dtype=dtype))
    assert float(total.norm()) <= opt.plan.max_grad_norm
    large = float(total[:1_000_003].norm())
    expected = {"fixed": opt.bound, "automatic": opt.bound / (1 + 1e-4), "per_layer": opt.bound / math.sqrt(2)}[way]
    assert large == pytest.approx(expected, rel=1e-9 if way == "per_layer" else 1e-5)


def test_what_rounding_makes_of_a_sum_does_not_depend_on_who_stands_where():
    """A large row and fifteen small ones, which single precision forgets behind a large one and counts before it.

    Without the first unit every row moves up by one place.
    """
    units, size = 640, 40
    large = torch.full((size,), 1.0)
    rows = torch.stack([large if u % 16 == 0 else large * 2.0**-25 for u in range(units + 1)])
    opt = mechanism(Bare(size), plan(clip=8.0))
    everyone, without = given_sum(opt, rows), given_sum(opt, rows[1:])
    assert float((everyone - without - rows[0].double()).norm()) <= 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [1, 7, 16, 300])
def test_sums_of_hundreds_of_units_are_the_formula(way, cut):
    torch.manual_seed(1)
    gradients = torch.randn(300, 11), torch.randn(300, 20_000) * torch.logspace(-4, 2, 300)[:, None]
    opt = mechanism(Bare(11, 20_000), plan(clipping=way))
    found = given_sum(opt, *gradients, cut=cut)
    each = [g.double() for g in gradients]
    norms = torch.stack([g.norm(dim=1) for g in each])
    c = opt.bound
    if way == "per_layer":
        factors = (c / math.sqrt(2) / norms).clamp(max=1)
    else:
        whole = norms.norm(dim=0).expand(2, -1)
        factors = (c / whole).clamp(max=1) if way == "fixed" else c / (whole + 0.01)
    expected = torch.cat([(g * f[:, None]).sum(dim=0) for g, f in zip(each, factors, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_leaves_the_others_sum_as_it_is_digit_by_digit(way, bad):
    torch.manual_seed(4)
    gradients = [torch.randn(9, 13), torch.randn(9, 20_000)]
    poisoned = [g.clone() for g in gradients]
    poisoned[1][4, 17] = bad
    others = [torch.cat([g[:4], g[5:]]) for g in gradients]
    opt = mechanism(Bare(13, 20_000), plan(clipping=way))
    assert torch.equal(given_sum(opt, *poisoned), given_sum(opt, *others))
    assert torch.equal(given_sum(opt, *(g[4:5] for g in poisoned)), torch.zeros(20_013, dtype=torch.float64))


def test_the_warning_of_such_a_gradient_names_no_unit_and_no_number_and_comes_once(caplog):
    opt = mechanism(Bare(3), plan())
    with caplog.at_level(logging.WARNING):
        given_sum(opt, torch.ones(4, 3))
        assert caplog.records == []
        for units in ([2], [0, 1], [3]):
            rows = torch.ones(4, 3)
            rows[units] = math.nan
            given_sum(opt, rows)
    (record,) = caplog.records
    assert "not finite" in record.getMessage()
    assert not any(c.isdigit() for c in record.getMessage())


def test_statistics_are_filled_only_when_asked_for():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.1], [math.inf, 0.0], [math.nan, 1.0]])
    opt = mechanism(Bare(2), plan(clip=0.5))
    given_sum(opt, rows)
    assert opt.statistics is None
    opt.statistics = GradientStatistics()
    given_sum(opt, rows, cut=3)
    s = opt.statistics
    assert (s.units, s.clipped, s.not_finite) == (4, 1, 2)
    assert s.norms == pytest.approx(5.1, rel=1e-6)


# Optimisers, schedules and averages


def small_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def sums(steps: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(size, generator=generator, dtype=torch.float64) * 3 for _ in range(steps)]


def torchs_rates(settings: OptimizerSettings, steps: int) -> list[float]:
    """Learning rates by torch's own schedulers, after a linear warm-up written out."""
    warm = [settings.lr * (k + 1) / settings.warmup_steps for k in range(settings.warmup_steps)]
    inner = torch.optim.SGD([nn.Parameter(torch.zeros(1))], settings.lr)
    rest = steps - settings.warmup_steps
    scheduler = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(inner, factor=1.0),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(inner, T_max=rest),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(inner, 1.0, 0.0, total_iters=rest),
    }[settings.schedule]()
    rates = []
    for _ in range(rest):
        rates.append(inner.param_groups[0]["lr"])
        inner.step()
        scheduler.step()
    return warm + rates


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_schedules_are_torchs_own(schedule, warmup):
    settings = OptimizerSettings(0.3, schedule=schedule, warmup_steps=warmup)
    found = [settings.lr_at(step, 13) for step in range(1, 14)]
    assert found == pytest.approx(torchs_rates(settings, 13), rel=1e-12)
    assert min(found) > 0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_optimisers_are_torchs_own_on_the_noised_mean(schedule, kind, momentum, warmup):
    p = plan(1.3)
    settings = OptimizerSettings(0.2, kind, momentum, schedule, warmup, ema_decay=0.7)
    net, other = small_network(), small_network()
    state = TrainingState(net, p, settings)
    parameters = list(other.parameters())
    if kind == "adam":
        reference: torch.optim.Optimizer = torch.optim.Adam(parameters, 0.2)
    else:
        reference = torch.optim.SGD(parameters, 0.2, momentum)
    average = nn.utils.parameters_to_vector(parameters).detach().clone()
    random = Randomness.create(5)
    for step, (total, lr) in enumerate(
        zip(sums(6, state.optimizer.dimensions), torchs_rates(settings, 6), strict=True)
    ):
        noised = state.optimizer.noised(total, random.stream("noise", step + 1))
        assert not torch.equal(noised, total)
        state.apply(step + 1, noised)
        for q, mean in zip(parameters, torch.split(noised / 8, [q.numel() for q in parameters]), strict=True):
            q.grad = mean.view(q.shape)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        decay = min(0.7, (1 + step) / (10 + step))
        weights = nn.utils.parameters_to_vector(parameters).detach()
        average = weights if step == 0 else decay * average + (1 - decay) * weights
        torch.testing.assert_close(nn.utils.parameters_to_vector(net.parameters()), weights, rtol=1e-12, atol=1e-14)
        found = nn.utils.parameters_to_vector(state.averaged.module.parameters())
        torch.testing.assert_close(found, average, rtol=1e-12, atol=1e-14)
    assert state.step == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(kind, momentum, dtype):
    """Bit for bit: what was saved, and every step after it."""
    p = plan(1.0)
    settings = OptimizerSettings(0.2, kind, momentum, "cosine", 2, ema_decay=0.8)

    def fresh(seed: int) -> TrainingState:
        torch.manual_seed(seed)
        return TrainingState(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)).to(dtype), p, settings)

    whole = fresh(1)
    each = sums(6, whole.optimizer.dimensions)
    for step in (1, 2, 3):
        whole.apply(step, each[step - 1])
    saved = copy.deepcopy(whole.tensors())
    restored = fresh(2)
    restored.apply(1, each[5])  # moments and averages of another history
    restored.restore(3, saved)
    for step in (4, 5, 6):
        assert restored.step == step - 1
        now, then = restored.tensors(), whole.tensors()
        assert now.keys() == then.keys()
        assert all(torch.equal(now[k], then[k]) and now[k].dtype == then[k].dtype for k in then)
        whole.apply(step, each[step - 1])
        restored.apply(step, each[step - 1])
    now, then = restored.tensors(), whole.tensors()
    assert all(torch.equal(now[k], then[k]) for k in then)
    if kind == "adam":
        assert {"optimizer.0.exp_avg", "optimizer.0.exp_avg_sq", "optimizer.0.step"} <= saved.keys()


def test_what_was_saved_does_not_change_with_the_state():
    state = TrainingState(small_network(), plan(1.0), OptimizerSettings(0.2, "adam"))
    first, second = sums(2, state.optimizer.dimensions)
    state.apply(1, first)
    saved = state.tensors()
    kept = {k: t.clone() for k, t in saved.items()}
    state.apply(2, second)
    assert all(torch.equal(saved[k], kept[k]) for k in kept)
