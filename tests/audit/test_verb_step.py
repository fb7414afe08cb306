"""The verb ``audit`` on one step: its bound, its limits, its picture."""

import json

import pytest
from audit_calls import go, limits_are, record
from finished_runs import plan_at
from scipy.stats import norm

from dpeq.audit.picture import draw_roc
from dpeq.audit_verb.outcome import Outcome
from dpeq.privacy.audit.curves import profile_of
from dpeq.privacy.audit.membership import attack_quality
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.gaussian import add_noise
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.reporting.audit import contradiction, read_audits
from dpeq.reporting.numbers import show
from dpeq.training.start import Start


def hits_of_a_gaussian(rate, sample_rate=1.0):
    """At noise multiplier 1: Neyman-Pearson's test for a unit that is in the step with probability ``sample_rate``."""
    return (1 - sample_rate) * rate + sample_rate * norm.cdf(norm.ppf(rate) + 1)


def test_a_step_by_a_configuration(recipe, tmp_path):
    folder = tmp_path / "out"
    code, told, _ = go(recipe, "privacy.epsilon=8", folder=folder, repetitions=600)
    assert code == 0
    assert "1,200 private steps to take; time on this machine: about" in told
    for name in ("audit.json", "roc.svg", "roc.png"):
        assert (folder / name).stat().st_size > 0
    audit = record(folder)
    assert audit["method"] == "one private step, 1200 times"
    assert 0.2 < audit["epsilon_lower"] / plan_at(8.0).epsilon_spent <= 1
    assert contradiction(audit, plan_at(8.0), 4, plan_at(8.0).epsilon_spent) is None
    attack = record(folder)["attack"]
    assert attack["members"] == attack["others"] == 600
    assert [row["rate"] for row in attack["hit_rates"]] == [0.001, 0.01]
    assert not any(row["contradicts"] for row in attack["hit_rates"])
    limits_are(attack, hits_of_a_gaussian)
    for words in ("at least", "the plan says", "of it explained", "which was not tested", "at 0.1", "ROC curve"):
        assert words in told


def test_a_step_with_its_coins(recipe, tmp_path):
    folder = tmp_path / "out"
    code, told, _ = go(recipe, "privacy.epsilon=8", folder=folder, certain=False)
    assert code == 0
    assert "not tested" not in told
    assert record(folder)["details"]["in_every_step"] is False
    limits_are(record(folder)["attack"], lambda rate: hits_of_a_gaussian(rate, sample_rate=0.25))


def test_a_run_gets_the_audit_for_its_report(run):
    code, told, _ = go(run)
    assert code == 0
    assert f"'dpeq report {run}' shows it" in told
    (audit,) = read_audits(run)
    assert audit == {"name": "step", **record(run / "audits" / "step")}
    begun = json.loads((run / "audits" / "step" / "begun.json").read_text())
    assert (begun["run"], begun["plan_sha256"]) == (Start.read(run).run, plan_at(8.0).sha256)
    assert all(isinstance(show(value), str) for value in audit["details"].values())


def test_what_contradicts_the_plan_exits_with_1(run, monkeypatch):
    def quieter(self, total, noise):
        return add_noise(total, std=self.plan.noise_multiplier * self.plan.max_grad_norm / 4, stream=noise)

    monkeypatch.setattr(PlanOptimizer, "noised", quieter)
    code, _, told = go(run)
    assert code == 1
    assert "contradicts the plan" in told
    plan = plan_at(8.0)
    assert "allows" in contradiction(record(run / "audits" / "step"), plan, 4, plan.epsilon_spent)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_numbers_give_the_same_picture(tmp_path, suffix):
    attack = attack_quality([0.1 * i for i in range(200)], [i % 3 > 0 for i in range(200)])
    profile = profile_of(plan_at(8.0))
    body = Outcome([audit_one_run([0.0, 1.0], [True, False], delta=1e-5)], attack, profile, "training").to_dict()
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        draw_roc(body["attack"], "An attack", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
