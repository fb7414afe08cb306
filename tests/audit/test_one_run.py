"""The audit of a whole training: it hears what the plan says, explains a part of it, goes on after a stop."""

import dataclasses
import math

import pytest
import torch
from made_plans import made_plan
from torch import nn

import dpeq.audit.one_run as one_run_module
from benchmarks.killable import make_splits
from dpeq.audit.kept import read_state
from dpeq.audit.one_run import attack_training, audit_training, toss
from dpeq.audit.training import Course
from dpeq.data.augment import AugmentConfig
from dpeq.data.views import Augment
from dpeq.errors import ConfigError, DataError
from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.gaussian import add_noise
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.state import OptimizerSettings

SPEC = ResNet9Spec("C4", "none", (1, 1, 2), (1, 1, 1), stem_pool=True)


def make_plan(rate: float = 0.5, sigma: float = 1.0, steps: int = 6, **changes) -> PrivacyPlan:
    return made_plan(rate, sigma, steps, **changes)


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def attacked(folder, plan, *, canaries=400, model=None, augment=None, save_every=20, **options):
    settings = OptimizerSettings(lr=0.1, optimizer="adam", physical_units=256)
    course = Course(plan, settings, torch.device("cpu"), augment, save_every=save_every)
    return attack_training(model or small(), make_splits()["train"], course, folder, canaries=canaries, **options)


def test_a_training_is_explained_in_part_and_not_contradicted(tmp_path):
    plan = make_plan(rate=1.0)
    attack = attacked(tmp_path, plan, canaries=1000)
    audit = audit_training(plan, attack)
    assert 0.3 < audit.share <= 1
    assert not audit.contradicts
    assert audit.details["epsilon_lower_assuming_nothing"] < audit.epsilon_lower
    assert audit.details["steps_lost"] == attack.lost == 0
    assert attack.included.sum() == pytest.approx(500, abs=60)
    # Each score is normal, with mean and variance that six looks at a shift of 1 / sigma = 1 add up to.
    inside, outside = attack.scores[attack.included], attack.scores[~attack.included]
    assert inside.mean() == pytest.approx(3.0, abs=4 * math.sqrt(6 / 500))
    assert outside.mean() == pytest.approx(-3.0, abs=4 * math.sqrt(6 / 500))
    assert outside.var() == pytest.approx(6.0, rel=0.25)


def test_half_the_noise_is_found(tmp_path, monkeypatch):
    def quieter(self, total, noise):
        return add_noise(total, std=self.plan.noise_multiplier * self.plan.max_grad_norm / 2, stream=noise)

    monkeypatch.setattr(PlanOptimizer, "noised", quieter)
    plan = make_plan(rate=1.0, steps=2)
    assert audit_training(plan, attacked(tmp_path, plan, canaries=3000)).contradicts


def test_a_subsampled_training_with_views_of_an_equivariant_network(tmp_path):
    plan = make_plan(rate=0.5, sigma=0.8, views=2)
    augment = Augment(AugmentConfig(shift=1, rotate=20, brightness=5.0), 2)  # would turn one mark into another
    attack = attacked(tmp_path, plan, canaries=300, model=build_model(SPEC, 1, 2, seed=1), augment=augment)
    audit = audit_training(plan, attack)
    assert not audit.contradicts
    assert audit.epsilon_lower > 0
    difference = attack.scores[attack.included].mean() - attack.scores[~attack.included].mean()
    assert difference > 1


def test_it_spends_a_ledger_of_its_own_and_says_what_it_is(tmp_path):
    plan = make_plan(steps=3)
    attacked(tmp_path, plan, canaries=20)
    entries = read_ledger(tmp_path / AUDIT_LEDGER)
    assert entries.steps == 3
    notes = [entry for entry in entries if entry["kind"] == "audit"]
    assert len(notes) == 1
    assert "not for release" in notes[0]["detail"]
    assert (tmp_path / "state.safetensors").stat().st_mode & 0o077 == 0


def test_what_was_stopped_goes_on_with_the_same_coins(tmp_path):
    plan, steps = make_plan(rate=1.0, steps=6), []
    first = attacked(
        tmp_path, plan, after_step=lambda record: steps.append(record.step), should_stop=lambda: len(steps) >= 2
    )
    assert first.stopped
    assert read_state(tmp_path).heard.steps == 2
    second = attacked(tmp_path, plan, after_step=lambda record: steps.append(record.step))
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not second.stopped
    assert second.lost == 0
    assert (second.included == first.included).all()
    assert second.scores[second.included].mean() == pytest.approx(3.0, abs=0.7)
    again = attacked(tmp_path, plan)  # nothing is left to do
    assert (again.scores == second.scores).all()
    assert read_ledger(tmp_path / AUDIT_LEDGER).steps == 6


def test_weights_and_optimiser_go_on_where_they_stood(tmp_path):
    plan = make_plan(steps=6)
    steps: list[int] = []
    attacked(tmp_path, plan, after_step=lambda r: steps.append(r.step), should_stop=lambda: len(steps) >= 2)
    before = read_state(tmp_path).tensors
    attacked(tmp_path, plan, should_stop=lambda: True)
    after = read_state(tmp_path).tensors
    assert before.keys() == after.keys()
    assert any(name.startswith("optimizer.") for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_after_a_crash_steps_are_lost_and_not_taken_again(tmp_path):
    plan, steps = make_plan(rate=1.0, steps=6), []

    def crash(record):
        steps.append(record.step)
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attacked(tmp_path, plan, after_step=crash, save_every=2)
    kept = read_state(tmp_path)
    assert (kept.step, kept.heard.steps) == (2, 2)
    second = attacked(tmp_path, plan, after_step=lambda record: steps.append(record.step), save_every=2)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert second.lost == 1
    assert audit_training(plan, second).details["steps_lost"] == 1
    assert (second.included == kept.heard.included).all()


def test_coins_are_kept_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(one_run_module, "log_likelihood_ratio", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        attacked(tmp_path, make_plan())
    assert read_state(tmp_path).step == 0
    assert len(read_state(tmp_path).heard.included) == 400


def test_other_canaries_need_another_folder(tmp_path):
    attacked(tmp_path, make_plan(steps=1), canaries=30)
    with pytest.raises(ConfigError, match="30 canaries, not 40"):
        attacked(tmp_path, make_plan(steps=1), canaries=40)


def test_a_damaged_state_is_named(tmp_path):
    attacked(tmp_path, make_plan(steps=1), canaries=30)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"state\.safetensors"):
        attacked(tmp_path, make_plan(steps=1), canaries=30)


def test_a_plan_without_privacy_is_refused(tmp_path):
    plan = dataclasses.replace(
        make_plan(), epsilon_target=float("inf"), noise_multiplier=0.0, accountant="none", epsilon={}
    )
    with pytest.raises(ConfigError, match="finite epsilon"):
        attacked(tmp_path, plan)


def test_coins_are_fair_and_few_canaries_refused():
    bits = toss(4000)
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    with pytest.raises(ConfigError, match="19 canaries"):
        toss(19)
