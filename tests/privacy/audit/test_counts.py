"""Counts from scores and rates from counts, against enumeration, scipy and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from dpeq.errors import ConfigError
from dpeq.privacy.audit.counts import Guesses, correct_guesses, even_guesses, rate_high, rate_low


def fewest_right(scores, included, guesses):
    """Over all orders in which equal scores may come: the top guessed in, the bottom out."""
    fewest = guesses.total
    for order in itertools.permutations(range(len(scores))):
        falling = [scores[i] for i in order]
        if falling != sorted(falling, reverse=True):
            continue
        top, bottom = order[: guesses.highest], order[len(order) - guesses.lowest :]
        fewest = min(fewest, sum(included[i] for i in top) + sum(not included[i] for i in bottom))
    return fewest


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=6),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_equal_scores_are_ranked_against_the_audit(canaries, highest, lowest):
    scores, included = [float(s) for s, _ in canaries], [bit for _, bit in canaries]
    guesses = Guesses(min(highest, len(scores)), min(lowest, len(scores) - min(highest, len(scores))))
    if guesses.total:
        assert correct_guesses(scores, included, guesses) == fewest_right(scores, included, guesses)


def test_the_order_of_the_canaries_tells_nothing():
    """Members listed first, a constant score: nothing may come out right for that."""
    included = np.arange(100) < 50
    assert correct_guesses(np.zeros(100), included, even_guesses(100, 0.5)) == 0
    assert correct_guesses(np.zeros(100), included[::-1], even_guesses(100, 0.5)) == 0
    assert correct_guesses(np.zeros(100), included, even_guesses(100, 0.1)) == 0


def test_guesses_without_equals():
    random = np.random.default_rng(1)
    scores, included = random.normal(size=200), random.integers(0, 2, 200).astype(bool)
    order = np.argsort(-scores)
    right = included[order[:30]].sum() + (~included[order[-20:]]).sum()
    assert correct_guesses(scores, included, Guesses(30, 20)) == right
    assert correct_guesses(scores, included.astype(int), Guesses(30, 20)) == right
    assert correct_guesses(scores, included, Guesses(30, 0)) == included[order[:30]].sum()


def test_even_guesses():
    assert even_guesses(5) == Guesses(1, 1)
    assert even_guesses(101, 0.5) == Guesses(50, 50)


@pytest.mark.parametrize(("trials", "confidence"), [(1, 0.95), (17, 0.9), (400, 0.975), (5000, 0.999)])
def test_limits_are_those_of_clopper_and_pearson(trials, confidence):
    for seen in {0, 1, trials // 3, trials - 1, trials}:
        two_sided = binomtest(seen, trials).proportion_ci(1 - 2 * (1 - confidence), "exact")
        assert float(rate_high(seen, trials, confidence)) == pytest.approx(two_sided.high, rel=1e-9)
        assert float(rate_low(seen, trials, confidence)) == pytest.approx(two_sided.low, rel=1e-9)
        if seen < trials:  # by definition: so few have just this probability at the limit
            assert binom.cdf(seen, trials, rate_high(seen, trials, confidence)) == pytest.approx(1 - confidence)


def test_a_threshold_by_rank_keeps_the_limit():
    """The rate beyond the 6th largest of 200 uniforms is 1 minus it; it misses the limit for 5 in 5 %, exactly."""
    sample = np.random.default_rng(3).random((20_000, 200))
    beyond = 1 - np.sort(sample, axis=1)[:, -6]
    missed = (beyond > rate_high(5, 200, 0.95)).mean()
    assert missed == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 20_000))


def test_what_is_refused():
    with pytest.raises(ConfigError, match="two equal lists"):
        correct_guesses([1.0, 2.0], [True], Guesses(1, 0))
    with pytest.raises(ConfigError, match="not a number"):
        correct_guesses([1.0, float("nan")], [True, False], Guesses(1, 0))
    with pytest.raises(ConfigError, match="true or false"):
        correct_guesses([1.0, 2.0], [0, 2], Guesses(1, 0))
    for guesses in (Guesses(2, 1), Guesses(0, 0), Guesses(-1, 2)):
        with pytest.raises(ConfigError, match="no canary twice"):
            correct_guesses([1.0, 2.0], [True, False], guesses)
    with pytest.raises(ConfigError, match="share guessed"):
        even_guesses(10, 0.6)
    with pytest.raises(ConfigError, match="two at least"):
        even_guesses(1)
    with pytest.raises(ConfigError, match="trials"):
        rate_high(3, 2, 0.95)
    with pytest.raises(ConfigError, match="one at least"):
        rate_high(0, 0, 0.95)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        rate_high(0, 5, 1.0)
