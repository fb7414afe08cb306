"""The curve that people watch against the accountant itself, step by step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from dpeq.errors import ConfigError
from dpeq.privacy import accounting, remembered
from dpeq.privacy.curve import EpsilonCurve
from dpeq.privacy.plan import PrivacyPlan, calibrate

CONSTANTS = {"delta": 1e-4, "expected_batch_size": 64, "public_units": 1000, "max_grad_norm": 1.0, "unit": "image"}


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return calibrate(epsilon=4.0, steps=60, **CONSTANTS)


def test_it_never_says_less_than_the_accountant(plan):
    """Steps between the computed points too, by bounds that were computed for that many steps alone."""
    curve = EpsilonCurve(plan)
    asked = {step for step, _ in accounting.epsilon_curve(plan)}
    between = [step for step in (1, 4, 11, 29, 31, 44, 59) if step not in asked]
    assert len(between) >= 3
    with accounting.session("prv"):
        for step in (*between, 60):
            bounds = accounting.epsilon_prv(plan.sample_rate, plan.noise_multiplier, step, plan.delta)
            assert curve.after(step) >= bounds.lower
            # The later point, not the nearer one: a bound for fewer steps would lie below this one's.
            exact = accounting.epsilon_pld(plan.sample_rate, plan.noise_multiplier, step, plan.delta)
            assert curve.after(step) >= exact * 0.9995


def test_it_rises_from_nothing_to_what_the_plan_spends(plan):
    curve = EpsilonCurve(plan)
    values = [curve.after(step) for step in range(plan.steps + 1)]
    assert values[0] == 0.0
    assert values[1] > 0
    assert values[-1] == plan.epsilon_spent
    assert all(a <= b for a, b in pairwise(values))


def test_without_noise_everything_is_spent_at_once():
    curve = EpsilonCurve(calibrate(epsilon=math.inf, steps=60, **CONSTANTS))
    assert [curve.after(0), curve.after(1), curve.after(60)] == [0.0, math.inf, math.inf]


@pytest.mark.parametrize("step", [-1, 61])
def test_steps_that_the_plan_lacks_are_refused(plan, step):
    with pytest.raises(ConfigError, match=f"no step {step}"):
        EpsilonCurve(plan).after(step)


def test_the_accountant_is_asked_once_per_plan(plan, monkeypatch):
    EpsilonCurve(plan)

    def refuse(*args):
        raise AssertionError("asked again")

    monkeypatch.setattr(remembered, "epsilon_curve", refuse)
    assert EpsilonCurve(plan).after(60) == plan.epsilon_spent
    other = calibrate(epsilon=math.inf, steps=7, **CONSTANTS)
    with pytest.raises(AssertionError, match="asked again"):
        EpsilonCurve(other)
