"""The one-run audit of a trade-off curve: a linear programme, enumerated mechanisms, 200 audits of a Gaussian one."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom

from dpeq.errors import ConfigError
from dpeq.privacy.accounting import session
from dpeq.privacy.audit.counts import Guesses
from dpeq.privacy.audit.curves import GaussianCurves, PairCurves, SubsampledGaussianCurves, inverse
from dpeq.privacy.audit.f_dp import audit_f_dp, rejects, strength_lower
from dpeq.privacy.audit.one_run import audit_one_run, epsilon_lower
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.tradeoff import Profile, gaussian_profile
from tests.privacy.audit.mechanisms import (
    REPETITIONS,
    allowed_misses,
    gaussian_canaries,
    leaking_channel,
    loss_of_steps,
    random_channel,
    reading_guesses,
)

DELTA = 1e-5


def largest_tail(profile, canaries, guesses, correct):
    """The largest P[C >= correct] that the inequalities of the paper allow, by a linear programme over the law of C."""
    count = np.arange(guesses + 1)
    rows, limits = [], []
    for i in range(1, guesses + 1):
        t = np.where(count >= i, count, 0) / canaries
        h = np.where(count >= i - 1, guesses - count, 0) / canaries
        for epsilon, delta in zip(profile.epsilon, profile.delta, strict=True):
            rows += [t - math.exp(epsilon) * h, t - math.exp(-epsilon) * h]
            limits += [delta, 1 - math.exp(-epsilon) * (1 - delta)]
    answer = linprog(
        -(count >= correct).astype(float),
        A_ub=np.array(rows),
        b_ub=np.array(limits),
        A_eq=np.ones((1, guesses + 1)),
        b_eq=[1.0],
        bounds=(0, 1),
    )
    assert answer.status == 0
    return -answer.fun


@pytest.mark.parametrize(
    "profile",
    [Profile([1.0], [0.0]), Profile([0.5, 1.5, 3.0], [0.2, 0.03, 1e-3]), Profile([2.0], [0.05])],
    ids=["pure", "three pairs", "one pair"],
)
def test_against_a_linear_programme(profile):
    """Going down with no more probability than needed is the best there is: the rejection flips where the LP says."""
    least = inverse(profile)
    flips = 0
    for canaries, guesses in ((8, 8), (20, 12), (40, 10)):
        for correct in range(guesses // 2, guesses + 1):
            tau = largest_tail(profile, canaries, guesses, correct)
            if tau * 1.001 <= 0.5:
                assert rejects(least, canaries, guesses, correct, 1 - tau * 1.001)
                flips += 1
            if tau * 0.999 <= 0.5:
                assert not rejects(least, canaries, guesses, correct, 1 - tau * 0.999)
    assert flips >= 3


@pytest.mark.parametrize("seed", range(40))
def test_no_mechanism_is_rejected_by_its_own_curve(seed):
    """Enumerated mechanisms: so many right guesses are seen with probability tau, so tau must not reject."""
    random = np.random.default_rng(seed)
    if seed % 2:
        channel = random_channel(random, 4, int(random.integers(2, 9)), float(random.choice([1.0, 4.0, 30.0])))
    else:
        channel = leaking_channel(4, float(random.uniform(0, 2)), float(random.choice([0.0, 1e-3, 0.05])))
    grid = np.linspace(0, 12, 400)
    profile = Profile(list(grid), list(np.minimum.accumulate([min(1.0, channel.delta(e)) for e in grid])))
    for guesses in (1, 2, 4):
        for correct, chance in enumerate(channel.tail(reading_guesses(channel, guesses, random))):
            if 0 < chance <= 0.5:
                assert not rejects(inverse(profile), 4, guesses, correct, 1 - chance * (1 - 1e-9))


def test_randomised_response_is_not_rejected():
    """Many independent coins under pure epsilon: the tail is binomial, the bound must lie above it."""
    least, epsilon = inverse(Profile([1.0], [0.0])), 1.0
    for correct in range(150, 190):
        tail = float(binom.sf(correct - 1, 200, 1 / (1 + math.exp(-epsilon))))
        if 1e-9 < tail <= 0.5:
            assert not rejects(least, 200, 200, correct, 1 - tail)
    assert rejects(least, 200, 200, 180, 0.95)


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_the_inverse_of_a_profile_is_that_of_its_curve(mu):
    """A profile rounds outwards, so its inverse lies below the closed form, and close to it."""
    exact, rounded = GaussianCurves(DELTA).least_false_alarms(mu), inverse(gaussian_profile(mu))
    for hits in (1e-6, 1e-4, 0.01, 0.3, 0.7, 0.99, 0.9999):
        assert rounded(hits) <= exact(hits) * (1 + 1e-9)
        assert rounded(hits) == pytest.approx(exact(hits), rel=0.02, abs=1e-9)
    assert rounded(0.0) == 0.0
    assert gaussian_profile(mu).hit_rate(rounded(0.4)) == pytest.approx(0.4, abs=1e-9)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "epsilon"),
    # What google-deepmind/jax_privacy's implementation of the paper gives, at delta 1e-5 and 95 %.
    [(1000, 200, 180, 2.901242773), (1000, 100, 75, 1.005915905), (200, 40, 40, 4.534247572)],
)
def test_reference_values(canaries, guesses, correct, epsilon):
    curves = GaussianCurves(DELTA)
    strength = strength_lower(curves, canaries, guesses, correct, 0.95)
    assert curves.epsilon(strength) == pytest.approx(epsilon, rel=1e-7)


@pytest.mark.parametrize(("mu", "share"), [(0.5, 0.4), (1.0, 0.5), (2.0, 0.5)])
def test_audits_of_a_gaussian_mechanism(mu, share):
    theory = gaussian_epsilon(mu, DELTA)
    random = np.random.default_rng(int(10 * mu))
    found = [
        audit_f_dp(*gaussian_canaries(random, 1000, mu), GaussianCurves(DELTA), theoretical=theory)
        for _ in range(REPETITIONS)
    ]
    assert sum(audit.contradicts for audit in found) <= allowed_misses()
    assert sum(audit.mu_lower > mu for audit in found) <= allowed_misses()
    assert np.median([audit.share for audit in found]) > share


def test_a_curve_proves_more_than_a_pair():
    """On a Gaussian mechanism, by a third at least; with a pair's curve it proves what the other theorem does."""
    random = np.random.default_rng(3)
    for _ in range(5):
        scores, included = gaussian_canaries(random, 1000, 1.0)
        pair = audit_one_run(scores, included, delta=DELTA).epsilon_lower
        assert audit_f_dp(scores, included, GaussianCurves(DELTA)).epsilon_lower > 1.33 * pair
        assert audit_f_dp(scores, included, PairCurves(DELTA)).epsilon_lower == pytest.approx(pair, rel=0.1)
    counts = (500, 100, 83)
    assert strength_lower(PairCurves(0.0), *counts, 0.95) <= epsilon_lower(*counts, 0.0, 0.95) + 1e-6


def test_subsampled_training_by_its_own_curves():
    """Training's steps as they are, canaries scored by the likelihood ratio."""
    q, sigma, steps, canaries = 0.2, 0.8, 20, 1000
    curves = SubsampledGaussianCurves(DELTA, q, steps)
    theory = curves.epsilon(1 / sigma)
    random = np.random.default_rng(9)
    found = []
    with session():
        for _ in range(4):
            included = random.integers(0, 2, canaries).astype(bool)
            scores = loss_of_steps(random, canaries, q, sigma, steps, included[:, None])
            found.append(audit_f_dp(scores, included, curves, theoretical=theory))
    assert sum(audit.contradicts for audit in found) <= 1
    assert np.median([audit.share for audit in found]) > 0.3
    assert all(audit.mu_lower is None for audit in found)
    assert all(audit.details["strength"] <= 1 / sigma for audit in found if not audit.contradicts)


def test_counts_reject_all_that_allows_less():
    curves = GaussianCurves(DELTA)
    strength = strength_lower(curves, 1000, 200, 160, 0.95)
    assert strength > 0
    assert all(rejects(curves.least_false_alarms(x * strength), 1000, 200, 160, 0.95) for x in (0.0, 0.3, 0.9, 1.0))
    assert not rejects(curves.least_false_alarms(strength * 1.001), 1000, 200, 160, 0.95)
    assert strength < strength_lower(curves, 1000, 200, 165, 0.95)
    assert strength > strength_lower(curves, 1000, 200, 160, 0.99)
    assert strength_lower(curves, 1000, 200, 100, 0.95) == 0.0


def test_candidates_are_paid_for():
    scores, included = gaussian_canaries(np.random.default_rng(6), 500, 2.0)
    choices = [Guesses(10, 10), Guesses(50, 50)]
    audit = audit_f_dp(scores, included, GaussianCurves(DELTA), candidates=choices)
    strict = [
        audit_f_dp(scores, included, GaussianCurves(DELTA), candidates=[choice], confidence=0.975) for choice in choices
    ]
    assert audit.epsilon_lower == pytest.approx(max(row.epsilon_lower for row in strict), rel=1e-6)
    assert audit.details["guessed_in"] in (10, 50)


def test_what_is_refused():
    curves = GaussianCurves(DELTA)
    with pytest.raises(ConfigError, match="cannot be"):
        rejects(curves.least_false_alarms(1.0), 10, 11, 3, 0.95)
    with pytest.raises(ConfigError, match="confidence"):
        rejects(curves.least_false_alarms(1.0), 10, 5, 3, 1.0)
