"""Attackers' bounds from a privacy profile, against closed forms and what must hold of any of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from dpeq.errors import ConfigError
from dpeq.privacy.tradeoff import Profile, gaussian_delta, gaussian_profile

MUS = (0.05, 0.5, 1.0, 2.0, 5.0)
RATES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999)


def gaussian_hits(false_alarms, mu):
    """Dong, Roth, Su 2022: the most powerful test between N(0, 1) and N(mu, 1)."""
    return norm.cdf(norm.ppf(false_alarms) + mu)


@pytest.mark.parametrize("mu", MUS)
def test_hit_rates_of_a_gaussian(mu):
    profile = gaussian_profile(mu)
    for rate in RATES:
        exact = gaussian_hits(rate, mu)
        assert exact <= profile.hit_rate(rate) + 1e-12
        assert profile.hit_rate(rate) <= exact + 1e-5
        assert profile.reconstruction(rate) == profile.hit_rate(rate)
    assert profile.advantage == pytest.approx(norm.cdf(mu / 2) - norm.cdf(-mu / 2), abs=1e-12)


@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("prior", [0.01, 0.1, 0.5, 0.8])
def test_best_guess_of_a_gaussian(mu, prior):
    """The Bayes rule between the two normal laws: say "in" above the threshold where the posterior odds are even."""
    threshold = mu / 2 + math.log((1 - prior) / prior) / mu
    exact = prior * norm.sf(threshold - mu) + (1 - prior) * norm.cdf(threshold)
    found = gaussian_profile(mu).best_guess(prior)
    assert exact - 1e-9 <= found <= exact + 1e-4


@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("exception", [0.05, 0.01, 1e-5])
def test_certainty_after_a_gaussian(mu, exception):
    """The privacy loss is normal there, mean mu^2 / 2, deviation mu. A bound for every mechanism is a little larger."""
    exact = mu * mu / 2 + mu * norm.isf(exception)
    found = gaussian_profile(mu).odds_factor(exception)
    assert exact <= found <= 1.35 * exact
    posterior = gaussian_profile(mu).posterior(0.1, exception)
    assert posterior / (1 - posterior) == pytest.approx(math.exp(found) / 9)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-3), (3.0, 1e-5), (8.0, 1e-2)])
def test_one_pair(epsilon, delta):
    """Kairouz, Oh, Viswanath 2015: the region of (epsilon, delta)-DP, its corner and its largest advantage."""
    pair = Profile([epsilon], [delta])
    corner = (1 - delta) / (1 + math.exp(epsilon))
    assert pair.hit_rate(corner) == pytest.approx(1 - corner)
    assert pair.advantage == pytest.approx((math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1))
    assert pair.hit_rate(0.0) == pytest.approx(delta)
    assert pair.hit_rate(corner / 2) == pytest.approx(math.exp(epsilon) * corner / 2 + delta)
    assert pair.odds_factor(delta) == math.inf  # a pair alone promises nothing with probability 1 - delta
    assert pair.posterior(0.3, delta) == 1.0
    assert pair.epsilon_at(delta) == epsilon
    assert pair.epsilon_at(delta / 2) == math.inf


def test_a_mechanism_that_exceeds_epsilon_more_often_than_delta():
    """Three outcomes, in closed form: (epsilon, delta)-DP holds, yet the odds pass e^epsilon with probability 0.05."""
    with_unit, without = np.array([0.05, 0.45, 0.5]), np.array([0.0025, 0.4975, 0.5])  # losses ln 20, -0.1, 0
    epsilon = 2.9
    delta = np.maximum(with_unit - math.exp(epsilon) * without, 0).sum()
    assert delta < 0.005
    loss = np.log(with_unit / without)
    exceeded = with_unit[loss > epsilon].sum()
    assert exceeded == 0.05 > 10 * delta
    for exception in (0.01, 0.04, 0.06, 0.2):
        factor = Profile([epsilon], [delta]).odds_factor(exception)
        assert with_unit[loss > factor].sum() <= exception


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("extra", [0.05, 0.3])
def test_regret_is_the_shift_between_two_curves(mu, extra):
    """By its definition: the least k with f(a + k) - k <= g(a) for all a, searched on a grid of a."""
    rates = np.linspace(0, 1, 20001)

    def misses(rates, mu):
        return norm.cdf(norm.isf(np.clip(rates, 0, 1)) - mu)

    low, high = 0.0, 1.0
    while high - low > 1e-9:
        k = (low + high) / 2
        below = misses(rates + k, mu) - k <= misses(rates, mu + extra)
        low, high = (low, k) if below.all() else (k, high)
    assert gaussian_profile(mu).regret(mu + extra) == pytest.approx(high, abs=2e-5)
    assert gaussian_profile(mu).regret(mu) == pytest.approx(0.0, abs=1e-12)
    assert gaussian_profile(mu).regret(mu / 2) == 0.0  # a mu that claims too much has no regret, and no truth either


def test_no_loss_at_all():
    nothing = gaussian_profile(0.0)
    for share in (0.0, 1e-3, 0.4, 1.0):
        assert nothing.hit_rate(share) == share
        assert nothing.posterior(share, 0.01) == pytest.approx(share)
        assert nothing.posterior_of_flagged(share, 0.01) == pytest.approx(share)
        assert nothing.best_guess(share) == max(share, 1 - share)
    assert nothing.advantage == 0.0
    assert nothing.regret(0.0) == 0.0


def test_hopeless_losses_stay_finite():
    for profile in (gaussian_profile(100.0), Profile([600.0], [1.0])):
        assert profile.hit_rate(1e-3) == 1.0
        assert profile.advantage == pytest.approx(1.0)
        assert profile.best_guess(0.3) == pytest.approx(1.0)
        assert profile.posterior(0.01, 0.01) == pytest.approx(1.0)


def any_profile():
    """The profile of a mixture of two Gaussian mechanisms and a chance of failure: any shape that can be real."""

    def build(mu, other, weight, failure):
        grid = np.linspace(0, 20, 801)
        delta = weight * gaussian_delta(grid, mu) + (1 - weight) * gaussian_delta(grid, other)
        return Profile(grid, np.minimum.accumulate(np.clip(failure + (1 - failure) * delta, 0, 1)))

    return st.builds(build, st.floats(0.05, 4), st.floats(0.05, 4), st.floats(0, 1), st.floats(0, 0.01))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(profile=any_profile(), rate=st.floats(1e-6, 1), other=st.floats(1e-6, 1), prior=st.floats(0.001, 0.999))
def test_what_holds_of_every_profile(profile, rate, other, prior):
    hits = profile.hit_rate(rate)
    assert rate <= hits <= 1
    assert hits - rate <= profile.advantage + 1e-12
    # rising and concave
    assert (profile.hit_rate(other) - hits) * (other - rate) >= 0
    assert profile.hit_rate((rate + other) / 2) >= (hits + profile.hit_rate(other)) / 2 - 1e-12
    # symmetric: exchanging the two worlds exchanges the kinds of error
    if hits < 1:
        assert profile.hit_rate(1 - hits) == pytest.approx(1 - rate, abs=1e-9)
    # a better informed belief, but for a prior that is certain
    assert prior <= profile.posterior(prior, 0.02) <= 1
    assert prior <= profile.posterior_of_flagged(prior, rate) + 1e-12
    assert max(prior, 1 - prior) <= profile.best_guess(prior) + 1e-12
    assert profile.posterior(prior, 0.02) <= profile.posterior(prior, 0.001)
    assert profile.posterior_of_flagged(prior, rate) >= profile.posterior_of_flagged(prior, min(1, 2 * rate)) - 1e-12
    assert profile.best_guess(0.5) == pytest.approx((1 + profile.advantage) / 2, abs=1e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(profile=any_profile(), index=st.integers(0, 800), rate=st.floats(1e-6, 1), prior=st.floats(0.01, 0.99))
def test_the_whole_profile_bounds_no_worse_than_any_of_its_pairs(profile, index, rate, prior):
    pair = Profile([profile.epsilon[index]], [profile.delta[index]])
    assert profile.hit_rate(rate) <= pair.hit_rate(rate)
    assert profile.advantage <= pair.advantage
    assert profile.posterior(prior, 0.02) <= pair.posterior(prior, 0.02)
    assert profile.best_guess(prior) <= pair.best_guess(prior)
    # and the best guess is that of the best threshold of the curve
    best = minimize_scalar(
        lambda a: -(prior * profile.hit_rate(a) + (1 - prior) * (1 - a)), bounds=(0, 1), method="bounded"
    )
    assert profile.best_guess(prior) >= -best.fun - 1e-9


@pytest.mark.parametrize(
    "bad", [([], []), ([0.0], [0.1, 0.2]), ([0.0, 0.0], [0.1, 0.1]), ([-1.0], [0.1]), ([700.0], [0.1])]
)
def test_lists_that_are_no_profile(bad):
    with pytest.raises(ConfigError, match="A privacy profile"):
        Profile(*bad)


@pytest.mark.parametrize("deltas", [[0.1, 0.2], [1.1, 0.1], [0.1, -0.1], [math.nan, 0.1]])
def test_deltas_that_are_no_profile(deltas):
    with pytest.raises(ConfigError, match="deltas must lie"):
        Profile([0.0, 1.0], deltas)


def test_impossible_shares_are_refused():
    profile = gaussian_profile(1.0)
    for call in (profile.hit_rate, profile.reconstruction, profile.best_guess, lambda x: profile.posterior(x, 0.1)):
        for value in (-0.1, 1.1, math.nan):
            with pytest.raises(ConfigError, match="give a number between 0 and 1"):
                call(value)
    for value in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="exception"):
            profile.odds_factor(value)
    for mu in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="mu is"):
            gaussian_profile(mu)
