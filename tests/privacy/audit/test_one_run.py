"""The one-run audit of (epsilon, delta): exact sums, enumerated mechanisms, and 200 audits of a Gaussian mechanism."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from dpeq.errors import ConfigError
from dpeq.privacy.audit.counts import Guesses
from dpeq.privacy.audit.one_run import audit_one_run, epsilon_lower, p_value
from dpeq.privacy.gdp import gaussian_epsilon
from tests.privacy.audit.mechanisms import (
    REPETITIONS,
    allowed_misses,
    gaussian_canaries,
    leaking_channel,
    random_channel,
    reading_guesses,
)

DELTA = 1e-5


def exact_p_value(canaries, guesses, correct, odds, delta):
    """Theorem 5.2 in fractions, term by term, for e^epsilon = ``odds`` : 1, with i up to the number of canaries."""
    right = Fraction(odds, odds + 1)
    law = [math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k) for k in range(guesses + 1)]
    lifted = max(sum(law[max(correct - i, 0) : correct], Fraction(0)) / i for i in range(1, canaries + 1))
    return min(sum(law[correct:]) + 2 * canaries * Fraction(delta) * lifted, Fraction(1))


@pytest.mark.parametrize("odds", [1, 2, 7])
@pytest.mark.parametrize("delta", [0.0, 1e-4, 1e-2])
def test_p_value_in_fractions(odds, delta):
    for guesses, correct in ((1, 1), (12, 0), (12, 9), (12, 12), (30, 21), (30, 29)):
        exact = float(exact_p_value(40, guesses, correct, odds, delta))
        assert p_value(40, guesses, correct, math.log(odds), delta) == pytest.approx(exact, rel=1e-10)


def test_the_example_of_the_paper():
    """arXiv 2305.08846, Appendix D: 75 of 100 guesses on 1000 canaries, delta 1e-4, give 0.673 at 95 %."""
    assert epsilon_lower(1000, 100, 75, 1e-4, 0.95) == pytest.approx(0.673, abs=5e-4)
    assert p_value(1000, 100, 75, epsilon_lower(1000, 100, 75, 1e-4, 0.95), 1e-4) <= 0.05
    assert epsilon_lower(1000, 100, 50, 1e-4, 0.95) == 0.0


@pytest.mark.parametrize("seed", range(30))
def test_no_mechanism_guesses_better(seed):
    """Mechanisms small enough to enumerate, each with its own profile: the p-value bounds what is really guessed."""
    random = np.random.default_rng(seed)
    if seed % 2:
        channel = random_channel(random, 4, int(random.integers(2, 9)), float(random.choice([1.0, 4.0, 30.0])))
    else:
        channel = leaking_channel(4, float(random.uniform(0, 2)), float(random.choice([0.0, 1e-3, 0.05])))
    for guesses in (1, 2, 4):
        tail = channel.tail(reading_guesses(channel, guesses, random))
        for epsilon in (0.0, 0.3, 1.0, 2.0, 4.0):
            delta = channel.delta(epsilon) * (1 + 1e-12)
            for correct, chance in enumerate(tail):
                if delta < 1:
                    assert chance <= p_value(4, guesses, correct, epsilon, delta) + 1e-12


def test_randomised_response_attains_it():
    """Without delta the bound is the truth: of 4000 audits, 5 % miss, as near as a whole number of guesses allows."""
    canaries, epsilon = 400, 1.5
    right = np.random.default_rng(2).binomial(canaries, 1 / (1 + math.exp(-epsilon)), 4000)
    lower = np.array([epsilon_lower(canaries, canaries, int(v), 0.0, 0.95) for v in right])
    first = next(v for v in range(canaries) if epsilon_lower(canaries, canaries, v, 0.0, 0.95) > epsilon)
    chance = float(binom.sf(first - 1, canaries, 1 / (1 + math.exp(-epsilon))))
    assert 0.035 < chance <= 0.05
    assert (lower > epsilon).mean() == pytest.approx(chance, abs=4 * math.sqrt(0.05 * 0.95 / 4000))
    assert np.median(lower) > 0.8 * epsilon


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.data())
def test_more_right_prove_more_and_more_delta_less(guesses, data):
    correct = data.draw(st.integers(0, guesses))
    epsilon = epsilon_lower(60, guesses, correct, 1e-4, 0.95)
    assert epsilon <= epsilon_lower(60, guesses, min(correct + 1, guesses), 1e-4, 0.95) + 1e-9
    assert epsilon >= epsilon_lower(60, guesses, correct, 1e-2, 0.95) - 1e-9
    assert epsilon >= epsilon_lower(60, guesses, correct, 1e-4, 0.99) - 1e-9
    assert epsilon >= epsilon_lower(90, guesses, correct, 1e-4, 0.95) - 1e-9


@pytest.mark.parametrize(("mu", "canaries", "share"), [(0.5, 1000, 0.2), (1.0, 1000, 0.28), (2.0, 1000, 0.28)])
def test_audits_of_a_gaussian_mechanism(mu, canaries, share):
    """Each audit is sound with 95 %; this bound leaves much room below, so no miss is expected at all."""
    theory = gaussian_epsilon(mu, DELTA)
    random = np.random.default_rng(int(10 * mu))
    found = [
        audit_one_run(*gaussian_canaries(random, canaries, mu), delta=DELTA, theoretical=theory)
        for _ in range(REPETITIONS)
    ]
    assert sum(audit.contradicts for audit in found) <= allowed_misses()
    assert np.median([audit.share for audit in found]) > share


def test_a_mechanism_that_shows_nothing():
    """Fair coins against noise: an epsilon above 0 comes out at most in the 5 % granted."""
    random = np.random.default_rng(4)
    found = [audit_one_run(*gaussian_canaries(random, 200, 0.0), delta=DELTA) for _ in range(REPETITIONS)]
    assert sum(audit.epsilon_lower > 0 for audit in found) <= allowed_misses()


def test_candidates_are_paid_for():
    scores, included = gaussian_canaries(np.random.default_rng(6), 500, 2.0)
    choices = [Guesses(10, 10), Guesses(50, 50), Guesses(250, 250)]
    audit = audit_one_run(scores, included, delta=DELTA, candidates=choices)
    single = [audit_one_run(scores, included, delta=DELTA, candidates=[choice]) for choice in choices]
    strict = [audit_one_run(scores, included, delta=DELTA, candidates=[c], confidence=1 - 0.05 / 3) for c in choices]
    assert audit.epsilon_lower == pytest.approx(max(row.epsilon_lower for row in strict), rel=1e-8)
    assert audit.epsilon_lower < max(row.epsilon_lower for row in single)
    assert audit.details["candidates"] == 3
    assert audit.confidence == 0.95


def test_candidates_do_not_break_the_bound():
    """Randomised response again, where the bound is attained: the best of ten numbers of guesses must not miss more."""
    epsilon, canaries = 1.0, 300
    random = np.random.default_rng(8)
    choices = [Guesses(n, n) for n in range(60, 160, 10)]
    misses = 0
    for _ in range(REPETITIONS):
        included = random.integers(0, 2, canaries).astype(bool)
        kept = random.random(canaries) < 1 / (1 + math.exp(-epsilon))
        scores = np.where(kept, included, ~included) + 0.1 * random.random(canaries)
        audit = audit_one_run(scores, included, delta=0.0, candidates=choices, theoretical=epsilon)
        misses += audit.contradicts
    assert misses <= allowed_misses()


def test_members_listed_first_and_constant_scores():
    included = np.arange(1000) < 500
    assert audit_one_run(np.zeros(1000), included, delta=0.0).epsilon_lower == 0.0


def test_what_is_refused():
    with pytest.raises(ConfigError, match="cannot be"):
        p_value(10, 11, 3, 1.0, 0.0)
    with pytest.raises(ConfigError, match="cannot be"):
        p_value(10, 5, 6, 1.0, 0.0)
    with pytest.raises(ConfigError, match="Delta"):
        p_value(10, 5, 5, 1.0, 1.0)
    with pytest.raises(ConfigError, match="confidence"):
        epsilon_lower(10, 5, 5, 0.0, 0.2)
    with pytest.raises(ConfigError, match="name one at least"):
        audit_one_run([1.0, 2.0], [True, False], delta=0.0, candidates=[])
