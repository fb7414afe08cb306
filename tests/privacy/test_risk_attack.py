"""The bounds against attackers that are really run: the best test there is, on simulated releases of training.

One step releases z = b + sigma * noise, b = 1 with probability q where the unit is in the data and 0 where it is not;
by the neighbouring relation this pair is the worst there is. Its likelihood ratio is a sum over steps, in closed form.
"""

import math

import numpy as np
import pytest

from dpeq.privacy.risk import Mechanism, assess_runs
from dpeq.privacy.tradeoff import Profile

TRIALS = 400_000
SETTINGS = [(0.3, 0.8, 3), (0.1, 1.0, 20), (0.02, 0.6, 50)]


def log_ratio(z, q, sigma):
    """ln of P(z) / Q(z), summed over steps (last axis): P with the unit, Q without."""
    return np.log1p(q * np.expm1((2 * z - 1) / (2 * sigma**2))).sum(axis=-1)


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def attack(request):
    """The privacy loss of many trainings with and without the unit, and the profile that should bound them."""
    q, sigma, steps = request.param
    random = np.random.default_rng(5)
    parts = []
    for member in (True, False):
        chunks = []
        for _ in range(8):
            shape = (TRIALS // 8, steps)
            z = sigma * random.standard_normal(shape)
            if member:
                z += random.random(shape) < q
            chunks.append(log_ratio(z, q, sigma))
        parts.append(np.sort(np.concatenate(chunks)))
    from dpeq.privacy import risk

    profile = risk._profile((Mechanism(q, sigma, steps),), 1e-5)[0]
    return (*parts, profile)


def rates(scores_if_true, scores_if_false, level):
    """Of the test that names the ``level`` highest scores of the false world: measured (false alarms, hits)."""
    threshold = scores_if_false[-round(level * len(scores_if_false))]
    return (scores_if_false >= threshold).mean(), (scores_if_true >= threshold).mean()


def noise(share):
    """Five standard deviations of a measured share."""
    return 5 * math.sqrt(share * (1 - share) / TRIALS) + 5 / TRIALS


@pytest.mark.parametrize("level", [1e-3, 0.01, 0.05, 0.3])
def test_no_attacker_beats_the_bound_and_the_best_comes_near(attack, level):
    with_unit, without, profile = attack
    gaps = []
    for true, false in ((with_unit, without), (np.sort(-without), np.sort(-with_unit))):  # both orders of the pair
        alarms, hits = rates(true, false, level)
        bound = profile.hit_rate(alarms + noise(alarms))
        assert hits <= bound + noise(hits)
        gaps.append(profile.hit_rate(alarms) - hits - noise(hits))
    assert min(gaps) < 0.02 * profile.hit_rate(level)


def test_the_advantage_and_the_best_guess_are_reached(attack):
    with_unit, without, profile = attack
    measured = (with_unit > 0).mean() - (without > 0).mean()
    assert measured <= profile.advantage + noise(0.5)
    assert measured >= profile.advantage - noise(0.5) - 1e-3

    def right(prior):
        even = math.log((1 - prior) / prior)  # the loss at which the posterior is one half
        return prior * (with_unit > even).mean() + (1 - prior) * (without <= even).mean()

    for prior in (0.1, 0.3, 0.5):
        bound = profile.best_guess(prior)
        for order in (prior, 1 - prior):  # exchanging the two worlds exchanges the priors
            assert right(order) <= bound + noise(0.5)
        assert max(right(prior), right(1 - prior)) >= bound - noise(0.5) - 1e-3


@pytest.mark.parametrize("exception", [0.05, 0.01, 1e-3])
def test_beliefs_exceed_their_bound_no_more_often_than_said(attack, exception):
    with_unit, without, profile = attack
    for prior in (0.01, 0.1, 0.5):
        limit = profile.posterior(prior, exception)
        odds = prior / (1 - prior)
        for losses in (with_unit, without):
            beliefs = 1 / (1 + np.exp(-losses) / odds)
            assert (beliefs > limit).mean() <= exception + noise(exception)
    factor = profile.odds_factor(exception)
    assert (-without > factor).mean() <= exception + noise(exception)  # nor does a belief fall by more
    # The bound is not beside the point: at 60 % of the factor it is exceeded too often.
    assert (with_unit > 0.6 * factor).mean() > exception


def test_named_members(attack):
    """Among 1 % members, those named by the best test with 1 % false alarms."""
    with_unit, without, profile = attack
    alarms, hits = rates(with_unit, without, 0.01)
    right = 0.01 * hits / (0.01 * hits + 0.99 * alarms)
    bound = profile.posterior_of_flagged(0.01, 0.01)
    assert 0.9 * bound < right < bound * 1.03


def test_reconstruction_by_the_best_guesser():
    """An attacker told which of 10 records was used guesses right no more often than the bound allows.

    Each record moves the sum in a direction of its own (the worst case: orthogonal and of full norm), all else is
    known; the best guess is the record of the largest likelihood, and without the release one guess in ten is right.
    """
    q, sigma, steps, records, trials = 0.5, 1.5, 4, 10, 20_000
    random = np.random.default_rng(8)
    z = sigma * random.standard_normal((trials, steps, records))
    used = random.integers(records, size=trials)
    z[np.arange(trials), :, used] += random.random((trials, steps)) < q
    likelihood = np.log1p(q * np.expm1((2 * z - 1) / (2 * sigma**2))).sum(axis=1)
    success = (likelihood.argmax(axis=1) == used).mean()
    bound = assess_runs([Mechanism(q, sigma, steps)], 1e-5, "image").reconstructions[-1]
    assert bound.base_rate == 0.1
    assert success <= bound.success + 5 * math.sqrt(0.25 / trials)
    assert success > 0.1 + 0.4 * (bound.success - 0.1)  # a real attack, not a strawman


def test_a_bound_that_is_too_small_is_noticed(attack):
    """The checks above can fail: ten per cent off delta, and the best attacker is above the bound."""
    with_unit, without, profile = attack
    cheat = Profile(profile.epsilon, 0.9 * profile.delta)
    alarms, hits = rates(with_unit, without, 0.3)
    assert hits > cheat.hit_rate(alarms + noise(alarms)) + noise(hits)
