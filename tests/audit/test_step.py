"""The audit of the product's own step: it explains most of epsilon, never more than all, and finds planted faults."""

import dataclasses

import numpy as np
import pytest
from made_plans import DELTA, made_plan

import dpeq.privacy.optimizer as optimizer_module
import dpeq.training.loop as loop_module
from dpeq.audit.step import repeat_step
from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy.audit.steps import audit_step, best_threshold, in_every_step, many_steps_of, one_step_of
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness


def make_plan(rate: float = 1.0, sigma: float = 0.7, steps: int = 3, **changes) -> PrivacyPlan:
    return made_plan(rate, sigma, steps, unit="patient", max_grad_norm=0.3, **changes)


def audited(plan: PrivacyPlan, repetitions: int):
    block = many_steps_of(plan, repetitions)
    return audit_step(plan, repeat_step(block, canary=True), repeat_step(block, canary=False))


def test_a_step_is_explained_and_not_contradicted():
    """1000 repetitions of either kind, every unit in every step: 80 % at least."""
    plan = make_plan()
    found = audited(plan, 1000)
    assert found.step.theoretical == pytest.approx(gaussian_epsilon(1 / 0.7, DELTA), rel=1e-2)
    assert 0.8 <= found.step.share <= 1
    assert not found.step.contradicts
    assert found.training.theoretical == plan.epsilon_spent
    assert 0.8 <= found.training.share <= 1
    assert found.training.details["noise_multiplier_at_most"] >= 0.7
    expected = gaussian_epsilon(found.step.mu_lower * 3**0.5, DELTA)
    assert found.training.epsilon_lower == pytest.approx(expected, rel=1e-6)
    assert found.training.mu_lower == pytest.approx(found.step.mu_lower * 3**0.5)


@pytest.mark.parametrize("clipping", ["fixed", "automatic"])
def test_scores_are_what_the_plan_says(clipping):
    """Standard normal without the canary; with it a mixture: q of them stand 1 / sigma higher."""
    plan = make_plan(rate=0.4, clipping=clipping, views=2)
    block = many_steps_of(plan, 600)
    inside, outside = repeat_step(block, canary=True), repeat_step(block, canary=False)
    error = 1 / 600**0.5
    assert abs(outside.mean()) < 4 * error
    assert abs(outside.std() - 1) < 3 * error
    assert abs(inside.mean() - 0.4 / 0.7) < 4 * 1.3 * error
    found = audit_step(plan, inside, outside)
    assert not found.step.contradicts
    assert not found.training.contradicts
    assert found.step.epsilon_lower > 0


def test_a_step_without_coins_speaks_of_the_plan_with_them():
    """Strength is 1 / sigma on both sides, so the bound on a training is that of the noise that was found."""
    plan = make_plan(rate=0.2, sigma=1.0)
    block = many_steps_of(in_every_step(plan), 600)
    found = audit_step(plan, repeat_step(block, canary=True), repeat_step(block, canary=False), certain=True)
    assert found.step.theoretical == pytest.approx(gaussian_epsilon(1.0, DELTA), rel=1e-2)
    sigma = found.training.details["noise_multiplier_at_most"]
    assert 1.0 <= sigma < 1.6
    assert found.training.epsilon_lower == pytest.approx(accounting.epsilon_pld(0.2, sigma, 3, DELTA), rel=0.01)
    assert not found.training.contradicts
    assert "not tested" in found.training.assumes


def test_the_threshold_is_named_by_the_plan_alone():
    """Half way between the two hypotheses without coins, where few alarms are with them; no run is spent on it."""
    assert best_threshold(make_plan(), 1000, 0.95) == pytest.approx(0.5 / 0.7, abs=0.02)
    assert best_threshold(make_plan(rate=0.1), 5000, 0.95) > 1.2
    scores = np.random.default_rng(0).normal(size=(2, 200))
    assert audit_step(make_plan(), scores[0] + 1, scores[1]).step.details["chosen_on"] == 0


class _Louder(PlanOptimizer):
    """Noise of half the plan's standard deviation."""

    def noised(self, total, noise):
        quiet = dataclasses.replace(self.plan, noise_multiplier=self.plan.noise_multiplier / 2)
        std = quiet.noise_multiplier * quiet.max_grad_norm
        return optimizer_module.add_noise(total, std=std, stream=noise)


def test_half_the_noise_is_found(monkeypatch):
    monkeypatch.setattr(PlanOptimizer, "noised", _Louder.noised)
    found = audited(make_plan(), 400)
    assert found.step.contradicts
    assert found.training.contradicts


def test_units_that_are_clipped_to_twice_the_norm_are_found(monkeypatch):
    factors = optimizer_module.clip_factors
    monkeypatch.setattr(optimizer_module, "clip_factors", lambda norms, bound, how: factors(norms, 2 * bound, how))
    assert audited(make_plan(), 400).step.contradicts


def test_a_rate_that_is_not_the_plans_is_found(monkeypatch):
    sample = loop_module.poisson_sample
    monkeypatch.setattr(loop_module, "poisson_sample", lambda n, q, coins: sample(n, 1.0, coins))
    assert audited(make_plan(rate=0.2), 600).step.contradicts


def test_a_noise_that_is_used_again_is_found(monkeypatch):
    stream = Randomness.stream
    monkeypatch.setattr(Randomness, "stream", lambda self, use, step: stream(self, use, step if use != "noise" else 1))
    assert audited(make_plan(), 200).step.contradicts


def test_it_stops_when_asked():
    done = []
    block = many_steps_of(make_plan(), 50)
    scores = repeat_step(block, canary=True, after=lambda: done.append(1), should_stop=lambda: len(done) >= 7)
    assert len(scores) == len(done) == 7


def test_every_repetition_has_coins_and_noise_of_its_own():
    block = many_steps_of(make_plan(), 20)
    scores = np.concatenate([repeat_step(block, canary=True), repeat_step(block, canary=True)])
    assert len(np.unique(scores)) == 40


def test_a_plan_without_privacy_is_refused():
    plan = dataclasses.replace(
        make_plan(), epsilon_target=float("inf"), noise_multiplier=0.0, accountant="none", epsilon={}
    )
    with pytest.raises(ConfigError, match="finite epsilon"):
        one_step_of(plan)
