from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.guarantee import advantage, attacker, hit_rate, spent, statement

EPSILON, DELTA = st.floats(0, 30), st.floats(0, 0.01)


@pytest.fixture(scope="module")
def plan(private_run):
    return PrivacyPlan.read(private_run / "plan.json")


@given(EPSILON, DELTA)
def test_advantage_is_the_largest_gap_of_the_epsilon_delta_curve(epsilon, delta):
    rates = np.linspace(0, 1, 2001)
    gaps = [hit_rate(a, epsilon, delta, None) - a for a in rates]
    assert max(gaps) <= advantage(epsilon, delta, None) + 1e-12
    corner = (1 - delta) / (1 + math.exp(epsilon))  # where the two lines of the curve meet
    assert hit_rate(corner, epsilon, delta, None) - corner == pytest.approx(advantage(epsilon, delta, None), abs=1e-9)


@given(st.floats(0.01, 6))
def test_advantage_is_the_largest_gap_of_the_gaussian_curve(mu):
    half = float(norm.cdf(-mu / 2))  # false alarm rate of the best threshold between the two bell curves
    assert hit_rate(half, 1e3, 0.0, mu) - half == pytest.approx(advantage(1e3, 0.0, mu), abs=1e-9)
    assert advantage(1e3, 0.0, mu) == pytest.approx(norm.cdf(mu / 2) - norm.cdf(-mu / 2))


@given(EPSILON, DELTA, st.floats(0.01, 6), st.floats(1e-4, 0.5))
def test_more_knowledge_never_helps_the_attacker(epsilon, delta, mu, rate):
    both = hit_rate(rate, epsilon, delta, mu)
    assert rate - 1e-9 <= both <= min(hit_rate(rate, epsilon, delta, None), 1.0)
    assert both <= hit_rate(rate, epsilon + 1, delta, mu) + 1e-12
    assert 0 <= advantage(epsilon, delta, mu) <= advantage(epsilon, delta, None) <= 1


def test_textbook_values():
    assert advantage(0.0, 0.0, None) == 0.0
    assert advantage(math.log(3), 0.0, None) == pytest.approx(0.5)  # (3 - 1) / (3 + 1): the best guess is right 3 in 4
    assert advantage(0.0, 0.1, None) == pytest.approx(0.1)  # pure delta is total variation
    assert hit_rate(0.01, math.log(3), 0.0, None) == pytest.approx(0.03)
    assert hit_rate(0.05, 1e3, 0.0, 1.0) == pytest.approx(0.2595, abs=1e-4)  # power of a one-sided z test


def test_a_gaussian_simulation_never_beats_the_stated_odds():
    """The likelihood-ratio attack on one Gaussian release (mu = 1), whose best guess is right Phi(1/2) of the time."""
    rng = np.random.default_rng(0)
    member = rng.random(200_000) < 0.5
    guess = rng.normal(size=member.size) + member > 0.5
    right = np.mean(guess == member)
    assert right == pytest.approx((1 + advantage(50.0, 0.0, 1.0)) / 2, abs=0.004)


def test_a_complete_run_spends_what_the_plan_rests_on(plan):
    loss = spent(plan, plan.steps)
    assert (loss.epsilon, loss.mu, loss.complete) == (plan.epsilon_spent, plan.mu, True)
    odds = attacker(loss, plan.delta)
    assert odds["best_guess"] == pytest.approx(norm.cdf(plan.mu / 2))
    assert odds["rests_on"] == "mu"
    assert json.dumps(odds)


def test_a_run_that_stopped_early_spends_less_but_never_below_the_accountants_lower_bound(plan):
    from dpeq.privacy.accounting import epsilon_pld, epsilon_prv

    half = spent(plan, 200)
    bounds = epsilon_prv(plan.sample_rate, plan.noise_multiplier, 200, plan.delta)
    assert bounds.lower < half.epsilon < plan.epsilon_spent
    assert half.epsilon == epsilon_pld(plan.sample_rate, plan.noise_multiplier, 200, plan.delta)
    assert half.mu < plan.mu
    assert not half.complete
    none = spent(plan, 0)
    assert (none.epsilon, none.mu) == (0.0, 0.0)
    assert attacker(none, plan.delta)["best_guess"] < 0.5001


def test_the_sentence_names_unit_epsilon_delta_and_mu_rounded_up(plan):
    text = statement(plan, spent(plan, plan.steps)).replace("\N{NO-BREAK SPACE}", " ")
    for part in ("ε = 8.00", "δ = 1 × 10⁻⁴", "μ = 1.938", "one patient", "adding or removing"):
        assert part in text


def test_without_privacy_there_are_no_odds(open_run):
    plan = PrivacyPlan.read(open_run / "plan.json")
    loss = spent(plan, plan.steps)
    assert math.isinf(loss.epsilon)
    assert attacker(loss, plan.delta) is None
    assert "WITHOUT" in statement(plan, loss)
