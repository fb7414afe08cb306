from __future__ import annotations

import math

import pytest

from dpeq.errors import DataError
from dpeq.privacy.accounting import epsilon_pld, epsilon_prv
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import assess
from dpeq.privacy.risk_words import clinician, officer, reviewer
from dpeq.reporting.guarantee import readers, sampling, spent, statement


@pytest.fixture(scope="module")
def open_plan(open_run):
    return PrivacyPlan.read(open_run / "plan.json")


def test_a_complete_run_spends_what_the_plan_rests_on(plan):
    loss = spent(plan, plan.steps)
    assert (loss.epsilon, loss.mu, loss.accountant, loss.complete) == (plan.epsilon_spent, plan.mu, "pld", True)


def test_a_run_that_stopped_early_spends_less_but_never_below_the_accountants_lower_bound(plan):
    half = spent(plan, 200)
    bounds = epsilon_prv(plan.sample_rate, plan.noise_multiplier, 200, plan.delta)
    assert bounds.lower < half.epsilon < plan.epsilon_spent
    assert half.epsilon == epsilon_pld(plan.sample_rate, plan.noise_multiplier, 200, plan.delta)
    assert half.mu < plan.mu
    assert not half.complete
    none = spent(plan, 0)
    assert (none.epsilon, none.mu) == (0.0, 0.0)


def test_a_plan_that_states_less_than_it_costs_is_refused(plan):
    values = plan.to_dict()
    values["epsilon"]["pld"] *= 0.998
    with pytest.raises(DataError, match=r"but its constants cost 7\.998"):
        spent(PrivacyPlan.from_dict(values), plan.steps)


def test_the_sentence_names_unit_epsilon_delta_and_mu_rounded_up(plan):
    text = statement(plan, spent(plan, plan.steps)).replace("\N{NO-BREAK SPACE}", " ")
    for part in ("ε = 8.00", "δ = 1 × 10⁻⁴", "μ = 1.938", "one patient", "adding or removing"):
        assert part in text


def test_readers_hear_what_the_risk_says(plan):
    loss, risk = spent(plan, plan.steps), assess(plan)
    said = readers(plan, loss, risk)
    assert said == {
        "officer": list(officer(risk)),
        "clinician": list(clinician(risk)),
        "reviewer": list(reviewer(risk)),
    }


def test_without_a_step_every_reader_hears_so_first(plan):
    said = readers(plan, spent(plan, 0), assess(plan, 0))
    assert all(sentences[0].startswith("No step was taken") for sentences in said.values())
    assert "right with probability at most 50 %" in " ".join(said["officer"]).replace("\N{NO-BREAK SPACE}", " ")


def test_without_privacy_every_reader_hears_that_nothing_is_limited(open_plan):
    loss = spent(open_plan, open_plan.steps)
    assert math.isinf(loss.epsilon)
    assert "WITHOUT" in statement(open_plan, loss)
    said = readers(open_plan, loss, assess(open_plan))
    assert "Nothing limits" in said["officer"][0]
    assert "patient" in said["officer"][0]
    assert "Nothing limits" in said["clinician"][0]
    assert "epsilon is infinite" in said["reviewer"][0]
    assert "at most" not in " ".join(sentence for sentences in said.values() for sentence in sentences)


def test_sampling_says_what_was_run_and_what_was_accounted(plan, open_plan):
    told = sampling(plan, "os")
    assert "each patient enters on its own with probability q = 0.108751" in told["run"]
    assert "key of the operating system" in told["run"]
    assert "fixed seed" in sampling(plan, "seeded")["run"]
    assert told["accounted"].startswith(
        "400 Poisson-subsampled Gaussian mechanisms, each with probability q = 0.108751"
    )
    assert "no privacy loss" in sampling(open_plan, "os")["accounted"]
