"""The audit of many runs: closed forms, 200 audits of Gaussian mechanisms, subsampled training as it is."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from dpeq.errors import ConfigError
from dpeq.privacy.accounting import epsilon_pld, session
from dpeq.privacy.audit.curves import GaussianCurves, PairCurves, SubsampledGaussianCurves, own_curves
from dpeq.privacy.audit.many_runs import Limits, audit_many_runs, limits, strength_lower
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.plan import calibrate
from tests.privacy.audit.mechanisms import REPETITIONS, allowed_misses, loss_of_steps

DELTA = 1e-5


@pytest.fixture(scope="module", params=[(1.0, 5000), (2.0, 2000), (3.0, 2000)], ids=["mu 1", "mu 2", "mu 3"])
def gaussian_audits(request):
    """200 audits of one pure Gaussian mechanism: (mu, its epsilon, by Gaussian curves, by pairs)."""
    mu, runs = request.param
    theory = gaussian_epsilon(mu, DELTA)
    random = np.random.default_rng(int(mu))
    curve, pair = [], []
    for _ in range(REPETITIONS):
        scores = random.normal(size=runs) + mu, random.normal(size=runs)
        curve.append(audit_many_runs(*scores, GaussianCurves(DELTA), theoretical=theory))
        pair.append(audit_many_runs(*scores, PairCurves(DELTA), theoretical=theory))
    return mu, theory, curve, pair


def test_a_gaussian_mechanism_is_explained_nearly_whole(gaussian_audits):
    """80 % of epsilon at least, in 98 % of 200 audits; above it no more often than a bound of 95 % may be."""
    _, _, curve, _ = gaussian_audits
    shares = [audit.share for audit in curve]
    assert np.median(shares) > 0.87
    assert np.mean([share >= 0.8 for share in shares]) >= 0.98
    assert sum(audit.contradicts for audit in curve) <= allowed_misses()


def test_mu_is_a_lower_bound(gaussian_audits):
    mu, _, curve, _ = gaussian_audits
    assert sum(audit.mu_lower > mu for audit in curve) <= allowed_misses()
    assert np.median([audit.mu_lower for audit in curve]) > 0.85 * mu


def test_a_pair_explains_much_less(gaussian_audits):
    _, theory, curve, pair = gaussian_audits
    assert sum(audit.contradicts for audit in pair) <= allowed_misses()
    assert 0.15 < np.median([audit.share for audit in pair]) < 0.5
    assert all(p.epsilon_lower < c.epsilon_lower for p, c in zip(pair, curve, strict=True))
    assert all(p.mu_lower is None and p.theoretical == theory for p in pair)


def test_the_rates_hold_together():
    """With the threshold fixed, one of the two limits is missed in at most 5 %, and in no less than 3 %."""
    random = np.random.default_rng(5)
    alarms, misses = random.binomial(300, 0.2, 4000), random.binomial(200, 0.3, 4000)
    found = [limits(int(a), 300, int(b), 200, 0.95) for a, b in zip(alarms, misses, strict=True)]
    missed = np.mean([row.false_alarms < 0.2 or row.misses < 0.3 for row in found])
    assert 0.03 < missed < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("rates", [(0.02, 0.4), (0.3, 0.3), (0.4, 0.05), (1e-3, 0.9)])
def test_against_closed_forms(rates):
    alarms, misses = rates
    mu = norm.isf(alarms) - norm.ppf(misses)
    assert strength_lower(GaussianCurves(DELTA), Limits(*rates)) == pytest.approx(mu, rel=1e-8)
    for delta in (0.0, 1e-5, 0.01):
        epsilon = max(math.log((1 - misses - delta) / alarms), math.log((1 - alarms - delta) / misses))
        assert strength_lower(PairCurves(delta), Limits(*rates)) == pytest.approx(epsilon, rel=1e-8)


@pytest.mark.parametrize("rates", [(0.5, 0.6), (1.0, 0.0), (0.4, 0.6), (1.0, 1.0)])
def test_rates_of_chance_prove_nothing(rates):
    assert strength_lower(GaussianCurves(DELTA), Limits(*rates)) == 0.0
    assert strength_lower(PairCurves(DELTA), Limits(*rates)) == 0.0
    assert strength_lower(SubsampledGaussianCurves(DELTA, 0.1, 5), Limits(*rates)) == 0.0


def test_without_subsampling_both_families_agree():
    """At rate 1 they are one; dp-accounting's curve is rounded outwards, so it proves a little less."""
    rates, steps = Limits(0.05, 0.2), 9
    gaussian, subsampled = GaussianCurves(DELTA), SubsampledGaussianCurves(DELTA, 1.0, steps)
    mu, strength = strength_lower(gaussian, rates), strength_lower(subsampled, rates)
    assert 0.997 * mu < math.sqrt(steps) * strength <= mu
    exact = gaussian.epsilon(math.sqrt(steps) * strength)
    assert 0.998 * exact < subsampled.epsilon(strength) <= exact


def test_epsilon_of_one_subsampled_step_is_rounded_down():
    """Removing a unit from one step has a closed form: delta(eps) = q delta_G(ln(1 + (e^eps - 1) / q))."""
    q, strength = 0.3, 1.25
    epsilon = SubsampledGaussianCurves(DELTA, q, 1).epsilon(strength)
    inner = gaussian_epsilon(strength, DELTA / q)
    exact = math.log1p(q * math.expm1(inner))
    assert 0.998 * exact < epsilon < exact
    assert epsilon < epsilon_pld(q, 1 / strength, 1, DELTA)


def test_subsampled_training_by_its_own_curves():
    q, sigma, steps, runs = 0.2, 0.8, 20, 3000
    curves = SubsampledGaussianCurves(DELTA, q, steps)
    theory = curves.epsilon(1 / sigma)
    random = np.random.default_rng(7)
    found = []
    with session():
        for _ in range(4):
            scores = [loss_of_steps(random, runs, q, sigma, steps, member) for member in (True, False)]
            found.append(audit_many_runs(*scores, curves, theoretical=theory))
    assert sum(audit.contradicts for audit in found) <= 1
    assert np.median([audit.share for audit in found]) > 0.75
    assert all(audit.mu_lower is None for audit in found)


def test_too_little_noise_is_noticed():
    """Half the noise that the plan speaks of: the bound lies above the plan's epsilon."""
    q, sigma, steps = 0.2, 1.6, 20
    curves = SubsampledGaussianCurves(DELTA, q, steps)
    random = np.random.default_rng(8)
    scores = [loss_of_steps(random, 2000, q, sigma / 2, steps, member) for member in (True, False)]
    assert audit_many_runs(*scores, curves, theoretical=curves.epsilon(1 / sigma)).contradicts
    # No noise at all: no strength that is asked about explains it, and the bound stays finite.
    loud = audit_many_runs(scores[0] + 1e6, scores[1], curves, theoretical=curves.epsilon(1 / sigma))
    assert loud.contradicts
    assert loud.details["strength"] <= curves.top


def test_scores_may_come_sorted():
    """Threshold and bound come from different runs drawn at random, whatever the order of the list."""
    random = np.random.default_rng(10)
    shares = []
    for _ in range(REPETITIONS):
        scores = np.sort(random.normal(size=500) + 1.0), np.sort(random.normal(size=500))[::-1]
        shares.append(audit_many_runs(*scores, GaussianCurves(DELTA), theoretical=gaussian_epsilon(1.0, DELTA)).share)
    assert sum(share > 1 for share in shares) <= allowed_misses()
    assert np.median(shares) > 0.5


def test_the_runs_that_choose_do_not_count():
    random = np.random.default_rng(11)
    scores = random.normal(size=1000) + 2, random.normal(size=800)
    audit = audit_many_runs(*scores, GaussianCurves(DELTA))
    assert (audit.details["runs_with"], audit.details["runs_without"], audit.details["chosen_on"]) == (900, 720, 180)
    assert audit == audit_many_runs(*scores, GaussianCurves(DELTA))
    named = audit_many_runs(*scores, GaussianCurves(DELTA), threshold=1.0)
    assert (named.details["runs_with"], named.details["chosen_on"]) == (1000, 0)
    assert named.details["misses"] == (scores[0] <= 1).sum()
    assert named.details["false_alarms"] == (scores[1] > 1).sum()


def test_scores_at_the_threshold_say_out():
    scores = np.arange(20.0)
    audit = audit_many_runs(scores, scores, GaussianCurves(DELTA), threshold=12.0)
    assert (audit.details["false_alarms"], audit.details["misses"]) == (7, 13)


def test_a_chosen_threshold_is_not_a_lucky_one():
    """Scores that say nothing: choosing among hundreds of thresholds on the same runs would find something often."""
    random = np.random.default_rng(12)
    found = [
        audit_many_runs(random.normal(size=60), random.normal(size=60), PairCurves(0.0)) for _ in range(REPETITIONS)
    ]
    assert sum(audit.epsilon_lower > 0 for audit in found) <= allowed_misses()


def test_constant_scores_prove_nothing():
    for curves in (GaussianCurves(DELTA), PairCurves(DELTA)):
        assert audit_many_runs(np.zeros(50), np.zeros(50), curves).epsilon_lower == 0.0


def test_the_family_of_a_plan():
    constants = {"epsilon": 2.0, "delta": DELTA, "public_units": 500, "steps": 5, "max_grad_norm": 1.0, "unit": "image"}
    plan = calibrate(**constants, expected_batch_size=100)
    assert own_curves(plan) == SubsampledGaussianCurves(DELTA, 0.2, 5)
    assert own_curves(plan).epsilon(1 / plan.noise_multiplier) <= plan.epsilon_spent
    assert own_curves(calibrate(**constants, expected_batch_size=500)) == GaussianCurves(DELTA)
    with pytest.raises(ConfigError, match="no trade-off curve"):
        own_curves(calibrate(**{**constants, "epsilon": math.inf}, expected_batch_size=100))


def test_what_is_refused():
    curves, scores = GaussianCurves(DELTA), np.zeros(20)
    with pytest.raises(ConfigError, match="ten runs"):
        audit_many_runs(scores, scores[:9], curves)
    with pytest.raises(ConfigError, match="finite"):
        audit_many_runs(scores, np.full(20, np.inf), curves)
    with pytest.raises(ConfigError, match="threshold"):
        audit_many_runs(scores, scores, curves, threshold=math.nan)
    with pytest.raises(ConfigError, match="confidence"):
        audit_many_runs(scores, scores, curves, confidence=1.0)
    for wrong in (lambda: GaussianCurves(0.0), lambda: PairCurves(1.0), lambda: SubsampledGaussianCurves(0.0, 0.1, 5)):
        with pytest.raises(ConfigError, match="Delta"):
            wrong()
    with pytest.raises(ConfigError, match="steps"):
        SubsampledGaussianCurves(DELTA, 0.1, 0)
    with pytest.raises(ConfigError, match="sampling rate"):
        SubsampledGaussianCurves(DELTA, 0.0, 5)
