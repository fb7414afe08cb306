"""Membership attacks: hit rates against closed forms and by simulation, intervals by coverage."""

import json

import numpy as np
import pytest
from scipy.stats import binom, norm

from dpeq.errors import ConfigError
from dpeq.privacy.audit.counts import rate_high
from dpeq.privacy.audit.membership import attack_quality
from dpeq.privacy.tradeoff import gaussian_profile
from tests.privacy.audit.mechanisms import gaussian_canaries


def test_a_gaussian_attack():
    scores, included = gaussian_canaries(np.random.default_rng(1), 60_000, 2.0)
    found = attack_quality(scores, included)
    assert found.auc == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.005)
    for row, rate in zip(found.hit_rates, (0.001, 0.01), strict=True):
        assert row.rate == rate
        assert row.hits == pytest.approx(norm.cdf(norm.ppf(rate) + 2), abs=0.05)
        assert row.low < row.hits < row.high
        assert rate < row.false_alarms_high < 1.6 * rate
    assert found.members + found.others == 60_000
    assert (found.roc[0], found.roc[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert 100 < len(found.roc) <= 200
    for x, y in found.roc[1:-1]:
        assert y == pytest.approx(norm.cdf(norm.ppf(x) + 2), abs=0.03) if x > 0.002 else y < 0.3


def test_counts_at_a_rate():
    """Of 250 others, a rate of 1 % lets 2 pass: the threshold is the third highest, members beyond it are hits."""
    others, members = np.arange(250.0), np.array([0.5, 246.5, 247.0, 247.5, 249.5])
    scores, included = np.concatenate([others, members]), np.arange(255) >= 250
    row = attack_quality(scores, included, rates=[0.01]).hit_rates[0]
    assert row.hits == 2 / 5
    assert row.false_alarms_high == pytest.approx(float(rate_high(2, 250, 0.975)))
    assert binom.cdf(2, 250, row.false_alarms_high) == pytest.approx(0.025)
    assert binom.sf(1, 5, row.low) == pytest.approx(0.025)
    assert binom.cdf(2, 5, row.high) == pytest.approx(0.025)
    assert attack_quality(scores, included, rates=[0.012]).hit_rates[0].hits == 4 / 5
    scores, included = np.concatenate([np.arange(100.0), [70.5]]), np.arange(101) == 100
    assert (
        attack_quality(scores, included, rates=[0.29]).hit_rates[0].hits == 1.0
    )  # 0.29 * 100 is 29, whatever floats say


def test_equal_scores_are_no_hits():
    included = np.arange(100) < 50
    row = attack_quality(np.ones(100), included).hit_rates[1]
    assert (row.hits, row.low) == (0.0, 0.0)
    assert row.false_alarms_high < 0.08


def test_limits_hold_and_honest_attacks_do_not_contradict():
    """Of the best attack on a mu-Gaussian mechanism, 300 times: 5 % may lie above the plan's own profile."""
    random, profile = np.random.default_rng(2), gaussian_profile(1.0)
    contradictions = missed = 0
    for _ in range(300):
        scores, included = gaussian_canaries(random, 1200, 1.0)
        row = attack_quality(scores, included, rates=[0.01], profile=profile).hit_rates[0]
        contradictions += row.contradicts
        threshold = np.sort(scores[~included])[::-1][int(0.01 * (~included).sum() + 1e-9)]
        missed += norm.sf(threshold) > row.false_alarms_high or norm.sf(threshold - 1.0) < row.low
        assert row.allowed == profile.hit_rate(row.false_alarms_high)
    assert missed <= binom.ppf(0.999, 300, 0.05)
    assert contradictions <= binom.ppf(0.999, 300, 0.05)


def test_too_good_an_attack_contradicts():
    scores, included = gaussian_canaries(np.random.default_rng(3), 4000, 3.0)
    found = attack_quality(scores, included, profile=gaussian_profile(1.0))
    assert found.hit_rates[1].contradicts
    assert not any(row.contradicts for row in attack_quality(scores, included).hit_rates)


def test_it_travels_as_json():
    scores, included = gaussian_canaries(np.random.default_rng(4), 300, 1.0)
    plain = json.loads(json.dumps(attack_quality(scores, included, profile=gaussian_profile(1.0)).to_dict()))
    assert plain["hit_rates"][0]["contradicts"] is False
    assert plain["roc"][0] == [0.0, 0.0]
    assert set(plain) == {"members", "others", "confidence", "auc", "hit_rates", "roc"}


def test_what_is_refused():
    with pytest.raises(ConfigError, match="both"):
        attack_quality([1.0, 2.0], [True, True])
    with pytest.raises(ConfigError, match="infinite"):
        attack_quality([1.0, np.inf], [True, False])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        attack_quality([1.0, 2.0], [True, False], rates=[0.0])
