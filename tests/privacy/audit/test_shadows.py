"""Scores by shadow models: against a loop over units, laws that are known, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from dpeq.errors import ConfigError
from dpeq.privacy.audit.shadows import FEWEST, balanced_halves, check_shadows, likelihood_ratios


def answers(random, *, units=2000, shadows=8, apart=1.0, differs=0.0, difficulty=3.0, noise=1.0):
    """A target and shadows: each unit has a difficulty of its own, and a gap that being in makes."""
    gap = random.normal(apart, differs, units)
    base = random.normal(0, difficulty, units)
    had = balanced_halves(shadows, units, random)
    included = random.random(units) < 0.5
    told = base + gap * had + noise * random.normal(size=(shadows, units))
    target = base + gap * included + noise * random.normal(size=units)
    return target, told, had, included, (base, gap)


def test_every_unit_is_in_half_of_the_shadows_and_any_half_may_be_it():
    had = balanced_halves(6, 30_000, np.random.default_rng(0))
    assert had.shape == (6, 30_000)
    assert (had.sum(axis=0) == 3).all()
    kinds, counts = np.unique(had, axis=1, return_counts=True)
    assert kinds.shape[1] == 20  # 6 choose 3
    assert counts == pytest.approx(np.full(20, 1500), abs=6 * 1500**0.5)


def test_units_all_alike_are_scored_by_a_loop_in_the_same_way():
    """Another way to the same number: two normal laws per unit, their densities by scipy."""
    random = np.random.default_rng(1)
    target, told, had, _, _ = answers(random, units=40, shadows=6, differs=2.0)
    means, squares = [], 0.0
    for i in range(40):
        inside, outside = told[had[:, i], i], told[~had[:, i], i]
        means.append((inside.mean(), outside.mean()))
        squares += ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
    sigma = np.sqrt(squares / (40 * (6 - 2)))
    apart = np.array([a - b for a, b in means])
    kept = max(0.0, 1 - sigma**2 * (1 / 3 + 1 / 3) / apart.var())
    assert 0 < kept < 1
    expected = []
    for i, (a, b) in enumerate(means):
        half = (apart.mean() + kept * (a - b - apart.mean())) / 2
        middle = (a + b) / 2
        expected.append(norm.logpdf(target[i], middle + half, sigma) - norm.logpdf(target[i], middle - half, sigma))
    np.testing.assert_allclose(likelihood_ratios(target, told, had), expected, rtol=1e-9)


def test_many_shadows_come_near_to_the_best_test_there_is():
    """Neyman and Pearson: who knows both laws of every unit cannot be beaten, and 64 shadows come close."""
    random = np.random.default_rng(2)
    target, told, had, included, (base, gap) = answers(random, units=20_000, shadows=64, apart=0.5, differs=1.0)
    best = roc_auc_score(included, (target - base - gap / 2) * gap)
    found = roc_auc_score(included, likelihood_ratios(target, told, had))
    assert best - 0.02 < found <= best + 0.005


@pytest.mark.parametrize("differs", [0.0, 1.0])
def test_few_shadows_say_more_together_than_each_pair_of_means_by_itself(differs):
    random = np.random.default_rng(3)
    target, told, had, included, _ = answers(random, units=20_000, shadows=8, apart=0.3, differs=differs)
    inside = np.where(had, told, 0).sum(axis=0) / 4
    outside = np.where(had, 0, told).sum(axis=0) / 4
    alone = roc_auc_score(included, (target - (inside + outside) / 2) * (inside - outside))
    together = roc_auc_score(included, likelihood_ratios(target, told, had))
    assert together >= alone - 0.003
    if differs == 0.0:
        assert together > alone + 0.02


def test_what_no_model_remembers_cannot_be_told():
    random = np.random.default_rng(4)
    target, told, had, included, _ = answers(random, units=20_000, shadows=16, apart=0.0)
    assert roc_auc_score(included, likelihood_ratios(target, told, had)) == pytest.approx(0.5, abs=0.02)


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 6, 10]), st.floats(0.01, 100.0), st.floats(-1000, 1000))
def test_difficulty_and_scale_change_nothing_and_swapped_sides_change_the_sign(seed, shadows, scale, shift):
    random = np.random.default_rng(seed)
    target, told, had, _, _ = answers(random, units=12, shadows=shadows, differs=1.0)
    found = likelihood_ratios(target, told, had)
    easier = shift * random.random(12)
    np.testing.assert_allclose(
        likelihood_ratios(scale * target + easier, scale * told + easier, had), found, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(likelihood_ratios(target, told, ~had), -found, rtol=1e-9, atol=1e-12)
    assert np.isfinite(found).all()


def test_answers_that_never_vary_are_scored_without_a_division_by_nothing():
    had = balanced_halves(4, 5, np.random.default_rng(5))
    assert (likelihood_ratios(np.zeros(5), np.zeros((4, 5)), had) == 0).all()
    sure = likelihood_ratios(np.array([0.0, 1, 0, 1, 0]), had.astype(float), had)
    assert (np.sign(sure) == [-1, 1, -1, 1, -1]).all()


@pytest.mark.parametrize("shadows", [-2, 0, 2, 3, 7])
def test_shadows_that_cannot_be_shared_out_are_refused(shadows):
    with pytest.raises(ConfigError, match="even number of 4"):
        check_shadows(shadows)
    assert FEWEST == 4


def test_what_does_not_fit_is_refused():
    random = np.random.default_rng(6)
    target, told, had, _, _ = answers(random, units=6, shadows=4)
    with pytest.raises(ConfigError, match="same units"):
        likelihood_ratios(target[:5], told, had)
    with pytest.raises(ConfigError, match="same units"):
        likelihood_ratios(target, told[:, :5], had)
    with pytest.raises(ConfigError, match="half of the shadow models"):
        likelihood_ratios(target, told, np.ones_like(had))
    told[0, 0] = np.inf
    with pytest.raises(ConfigError, match="not finite"):
        likelihood_ratios(target, told, had)
