"""Risk of plans: the profile behind it, published values, two more libraries, and what is said without a profile."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpeq.errors import ConfigError
from dpeq.privacy import _profile, accounting, risk
from dpeq.privacy.accounting import AccountingError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import Mechanism, assess, assess_epsilon, assess_gaussian, assess_runs
from dpeq.privacy.tradeoff import Profile, gaussian_delta

DPSGD = Mechanism(0.328, 9.4, 2000)  # De et al. 2022 as Gomez et al. 2025 account for it
SMALL = Mechanism(0.1, 1.5, 50)


@pytest.fixture(scope="module", autouse=True)
def processes():
    """One set of child processes for the module: their start-up is paid once."""
    with accounting.session("pld"):
        yield


def make_plan(target, **changes):
    values = {
        "epsilon_target": target,
        "delta": 1e-5,
        "unit": "patient",
        "sample_rate": 0.1,
        "steps": 50,
        "expected_batch_size": 100,
        "noise_multiplier": 1.5,
        "max_grad_norm": 1.0,
        "public_units": 1000,
        "accountant": "prv",
        "epsilon": {"prv_upper": 4.0},
        "mu": 0.9,
    }
    return PrivacyPlan(**{**values, **changes})


def non_private():
    return make_plan(math.inf, noise_multiplier=0.0, accountant="none", epsilon={}, mu=None)


@pytest.mark.parametrize(("mu", "steps"), [(1.0, 1), (1.0, 1000), (1.0, 10_000), (0.05, 1000), (6.0, 300)])
def test_the_profile_without_subsampling_is_the_closed_form_and_never_below_it(mu, steps):
    """The convolutions' rounding included: an upper bound to the last digit."""
    answer = _profile.profile([(1.0, math.sqrt(steps) / mu, steps)], 1e-5, 1e-10)
    exact = gaussian_delta(np.array(answer["epsilon"]), mu)
    found = np.array(answer["delta"])
    assert (found >= exact).all()
    assert (found <= exact + 2e-4 * min(1, mu)).all()
    assert found[-1] <= 2e-10
    assert mu < answer["mu"] < 1.005 * mu


def test_published_mu_and_regret():
    """gdpnum, the code of Gomez et al. 2025, prints (1.5685621993129137, 0.0010208130697719753) for this training."""
    found = assess_runs([DPSGD], 1e-5, "image")
    assert found.mu == pytest.approx(1.5686, rel=3e-3)
    assert found.mu > 1.5685621993
    assert assess_runs([DPSGD], 1e-5, "image", mu=1.5685621993).regret == pytest.approx(0.00102, abs=2e-5)
    assert found.basis == "profile"
    assert found.note is None


@pytest.mark.parametrize("run", [SMALL, Mechanism(0.01, 0.7, 300), Mechanism(0.6, 4.0, 30)], ids=str)
def test_another_accountant_agrees(run):
    """prv-accountant, of other authors and by another method, bounds epsilon from both sides."""
    profile = risk._profile((run,), 1e-5)[0]
    for delta in (1e-6, 1e-4, 1e-2):
        bounds = accounting.epsilon_prv(*run, delta)
        assert bounds.lower <= profile.epsilon_at(delta) <= bounds.upper * 1.005 + 2e-3
    assert assess_runs([run], 1e-5, "image").epsilon == profile.epsilon_at(1e-5)


@pytest.mark.parametrize("run", [SMALL, Mechanism(0.01, 0.7, 300), Mechanism(0.6, 4.0, 30)], ids=str)
def test_riskcal_agrees(run):
    """riskcal (Kulynych, Gomez et al. 2024, Algorithm 1) inverts the distributions themselves, not the profile."""
    riskcal = pytest.importorskip("riskcal.analysis")
    from dp_accounting.pld import privacy_loss_distribution

    q, sigma, steps = run
    pld = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=1e-4, use_connect_dots=True
    ).self_compose(steps)
    found = assess_runs([run], 1e-5, "image")
    for rate in found.hit_rates:
        other = 1 - riskcal.get_beta_from_pld(pld, alpha=rate.false_alarms)
        assert other - 1e-5 <= rate.hits <= other + 5e-4
    assert found.advantage == pytest.approx(riskcal.get_advantage_from_pld(pld), abs=1e-4)
    for row in found.posteriors[1:]:
        # Its "Bayes risk" is the least error, members having the prior's complement; the other order is the worse one.
        error = min(riskcal.get_bayes_risk_from_pld(pld, x) for x in (row.prior, 1 - row.prior))
        assert row.best_guess == pytest.approx(1 - error, abs=1e-4)
    gaussian = assess_gaussian(1.3, 1e-5, "image")
    for rate in gaussian.hit_rates:
        assert rate.hits == pytest.approx(1 - riskcal.get_beta_from_gdp(1.3, rate.false_alarms), abs=1e-6)
    assert gaussian.advantage == pytest.approx(riskcal.get_advantage_from_gdp(1.3))
    pair = assess_epsilon(2.0, 1e-5, "image")
    for rate in pair.hit_rates:
        assert rate.hits == pytest.approx(1 - riskcal.get_beta_from_adp(2.0, 1e-5, rate.false_alarms))
    assert pair.advantage == pytest.approx(riskcal.get_advantage_from_adp(2.0, 1e-5))


def figures(found):
    """Every bound of a risk, in one list."""
    rates = [rate.hits for rate in found.hit_rates] + [row.success for row in found.reconstructions]
    beliefs = [
        getattr(row, name)
        for row in found.posteriors
        for name in ("usually", "hardly_ever", "from_epsilon", "flagged", "best_guess")
    ]
    return np.array([found.advantage, *rates, *beliefs, *(1 - misses for _, misses in found.trade_off)])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(q=st.floats(0.005, 0.6), sigma=st.floats(0.7, 8.0), steps=st.integers(1, 300), factor=st.floats(1.2, 3.0))
def test_monotone_in_noise_rate_and_steps(q, sigma, steps, factor):
    base = figures(assess_runs([Mechanism(q, sigma, steps)], 1e-5, "image"))
    assert (figures(assess_runs([Mechanism(q, sigma * factor, steps)], 1e-5, "image")) <= base + 1e-6).all()
    assert (figures(assess_runs([Mechanism(q, sigma, steps + 10)], 1e-5, "image")) >= base - 1e-6).all()
    more = Mechanism(min(1.0, q * factor), sigma, steps)
    assert (figures(assess_runs([more], 1e-5, "image")) >= base - 1e-6).all()


def test_mu_dominates_every_figure():
    found = assess_runs([SMALL], 1e-5, "image")
    gaussian = assess_gaussian(found.mu, 1e-5, "image")
    assert (figures(gaussian) >= figures(found) - 1e-6).all()
    assert 0 < found.regret < 0.05
    assert found.mu == pytest.approx(accounting.mu_bound(*SMALL, 1e-5), rel=5e-3)


def test_one_pair_says_less_than_the_profile():
    found = assess_runs([SMALL], 1e-5, "image")
    pair = assess_epsilon(found.epsilon, 1e-5, "image")
    assert (figures(pair) >= figures(found)).all()
    assert pair.mu is None
    assert pair.regret is None
    for row in found.posteriors:
        assert row.prior <= row.usually <= row.from_epsilon
        assert row.usually <= row.hardly_ever
    for whole in (found, pair):
        assert [row.from_epsilon for row in whole.posteriors] == [row.usually for row in pair.posteriors]
    assert all(row.hardly_ever == 1.0 for row in pair.posteriors)


def test_several_runs_together():
    halves = assess_runs([SMALL._replace(steps=20), SMALL._replace(steps=30)], 1e-5, "image")
    whole = assess_runs([SMALL], 1e-5, "image")
    assert figures(halves) == pytest.approx(figures(whole), rel=1e-3)
    other = Mechanism(0.05, 1.0, 40)
    both = assess_runs([SMALL, other], 1e-5, "image")
    assert (figures(both) >= figures(whole) - 1e-9).all()
    assert both.runs == (SMALL, other)
    assert assess_runs([SMALL, other._replace(steps=0)], 1e-5, "image") == whole
    exact = assess_runs([Mechanism(1.0, 2.0, 9), Mechanism(1.0, 1.0, 4)], 1e-5, "image")
    assert exact.mu == pytest.approx(2.5)
    assert exact.basis == "mu"
    assert exact.hit_rates[1].hits == pytest.approx(norm.cdf(norm.ppf(0.01) + 2.5), abs=1e-5)


def test_plans():
    plan = make_plan(4.0)
    found = assess(plan)
    assert found == assess_runs([Mechanism(0.1, 1.5, 50)], 1e-5, "patient", mu=0.9)
    assert found.unit == "patient"
    part = assess(plan, 20)
    assert (figures(part) <= figures(found)).all()
    assert part.runs[0].steps == 20
    assert part.mu < 0.9  # its own, not the whole plan's
    none = assess(plan, 0)
    assert none.advantage == 0.0
    assert none.epsilon == 0.0
    assert [row.usually for row in none.posteriors] == pytest.approx([0.01, 0.1, 0.5])
    assert assess(non_private()) is None
    for steps in (-1, 51):
        with pytest.raises(ConfigError, match="has no step"):
            assess(plan, steps)


@pytest.mark.parametrize("kind", ["refuses", "rises", "nan"])
def test_without_a_profile_the_plans_epsilon_stands_in_and_says_so(kind, monkeypatch):
    def broken(role, op, **args):
        if kind == "refuses":
            raise AccountingError("no answer within 60 seconds")
        return {"mu": 1.0, "epsilon": [0.0, 1.0], "delta": [0.1, 0.2 if kind == "rises" else math.nan]}

    monkeypatch.setattr(risk, "ask", broken)
    risk._profile.cache_clear()
    try:
        found = assess(make_plan(4.0), 20)
    finally:
        risk._profile.cache_clear()
    assert found.basis == "epsilon"
    assert "dp-accounting gave no privacy profile" in found.note
    assert "no answer within 60 seconds" in found.note or "contradicts itself" in found.note
    assert found.epsilon == 4.0
    assert figures(found) == pytest.approx(figures(assess_epsilon(4.0, 1e-5, "patient")))


def test_a_group_of_images():
    one, three = (assess_runs([SMALL], 1e-5, "image", group=k) for k in (1, 3))
    assert (figures(three) >= figures(one)).all()
    assert three.hit_rates[1].hits > 1.5 * one.hit_rates[1].hits
    assert three.group == 3
    # Group privacy of (epsilon, delta)-DP is looser than the group's own profile.
    loose = sum(math.exp(i * one.epsilon) for i in range(3)) * 1e-5
    pair = Profile([3 * one.epsilon], [min(1.0, loose)])
    assert all(pair.hit_rate(rate.false_alarms) >= rate.hits for rate in three.hit_rates)
    exact = assess_runs([Mechanism(1.0, 3.0, 9)], 1e-5, "image", group=4)
    assert exact.mu == pytest.approx(4.0)
    plan = make_plan(4.0, unit="image")
    assert assess(plan, group=3) == three
    assert assess(plan, group=3).mu > plan.mu  # a group's own, not the plan's
    for group in (0, 1.5):
        with pytest.raises(ConfigError, match="The group has"):
            assess_runs([SMALL], 1e-5, "image", group=group)


def test_useless_noise_is_answered_and_bounds_nothing():
    for run in (Mechanism(0.1, 0.05, 100), Mechanism(0.1, 0.5, 20_000), Mechanism(1.0, 0.01, 100)):
        found = assess_runs([run], 1e-5, "image")
        assert all(rate.hits >= 0.9999 for rate in found.hit_rates)
        assert found.epsilon == math.inf
        json.dumps(found.to_dict(), allow_nan=False)
    assert assess_runs([Mechanism(0.1, 0.05, 100)], 1e-5, "image").mu is None  # not fitted to a part of the profile
    assert assess_epsilon(1000.0, 1e-5, "image").advantage == 1.0


def test_json():
    found = assess_runs([SMALL], 1e-5, "image")
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["hit_rates"][0] == {"false_alarms": 0.001, "hits": found.hit_rates[0].hits}
    assert plain["reconstructions"][2] == {"base_rate": 0.1, "success": found.reconstructions[2].success}
    assert plain["runs"] == [{"sample_rate": 0.1, "noise_multiplier": 1.5, "steps": 50}]
    assert [row["prior"] for row in plain["posteriors"]] == [0.01, 0.1, 0.5]
    for name in ("profile", "trade_off"):
        curve = np.array(plain[name])
        assert (np.diff(curve[:, 0]) > 0).all()
        assert (np.diff(curve[:, 1]) <= 0).all()
        assert ((curve[:, 1] >= 0) & (curve[:, 1] <= 1)).all()
    assert plain["trade_off"][0][0] == 0.0
    assert plain["trade_off"][-1] == [1.0, 0.0]
    assert len(json.dumps(plain)) < 20_000


@pytest.mark.parametrize(
    "run",
    [
        (0.0, 1.0, 1),
        (1.1, 1.0, 1),
        (math.nan, 1.0, 1),
        (0.1, 0.0, 1),
        (0.1, math.inf, 1),
        (0.1, 1.0, -1),
        (0.1, 1.0, 1.5),
    ],
)
def test_impossible_arguments_are_refused(run):
    with pytest.raises(ConfigError):
        assess_runs([Mechanism(*run)], 1e-5, "image")
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="Delta is"):
            assess_gaussian(1.0, delta, "image")
    for epsilon in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="Epsilon is"):
            assess_epsilon(epsilon, 1e-5, "image")


def test_quick_and_light():
    """A long training is answered in seconds; nothing heavy is imported, and nothing at all by ``import dpeq``."""
    code = (
        "import sys, dpeq\n"
        "assert 'numpy' not in sys.modules\n"
        "from dpeq.privacy.risk import Mechanism, assess_runs\n"
        "assert assess_runs([Mechanism(0.01, 1.0, 10_000)], 1e-5, 'image').advantage < 0.5\n"
        "assert not {'torch', 'opacus', 'dp_accounting', 'matplotlib', 'pandas'} & set(sys.modules)\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert time.monotonic() - started < 20  # about 2 s on an idle core; a hundred times that where grids go wrong


def test_profiles_are_kept_and_cannot_be_changed():
    first = risk._profile((SMALL,), 1e-5)[0]
    assert risk._profile((SMALL,), 1e-5)[0] is first
    assert isinstance(first, Profile)
    with pytest.raises(ValueError, match="read-only"):
        first.delta[0] = 0.0
