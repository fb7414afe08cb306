"""The membership attack: what its models are trained on, what is asked, and that it finds who was in without noise."""

import itertools

import numpy as np
import pytest
import torch
from made_plans import made_plan
from sklearn.metrics import roc_auc_score
from torch import nn

import dpeq.audit.members as members_module
from benchmarks.killable import make_splits
from dpeq.audit.asking import log_odds
from dpeq.audit.kept import read_halves, read_heard, read_state
from dpeq.audit.members import answers, attack_members, part_of
from dpeq.audit.one_run import audit_training
from dpeq.audit.training import Course
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.state import OptimizerSettings

CPU = torch.device("cpu")
UNITS = 120


def noise_images(units=UNITS, each=1):
    """Images and labels that have nothing to do with each other: what a network knows of them, it remembers."""
    generator = torch.Generator().manual_seed(0)
    rows = units * each
    images = torch.randn(rows, 1, 8, 8, generator=generator)
    labels = torch.randint(2, (units,), generator=generator).repeat_interleave(each)
    return ImageSet(images, labels, torch.arange(units).repeat_interleave(each), units, ("a", "b"), "train", "image")


def make_plan(sigma: float, steps: int = 40) -> PrivacyPlan:
    sizes = {"expected_batch_size": UNITS // 2, "max_grad_norm": 1.0, "public_units": UNITS}
    return made_plan(0.5, sigma, steps, accountant="rdp", **sizes)


def builder():
    """Makes networks that differ, the same ones in every test."""
    seeds = itertools.count()

    def build() -> nn.Module:
        torch.manual_seed(next(seeds))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2))

    return build


def attacked(folder, sigma, *, shadows=8, images=None, steps=40, **options):
    settings = OptimizerSettings(lr=0.02, optimizer="adam", ema_decay=0.5, physical_units=256)
    course = Course(make_plan(sigma, steps), settings, CPU)
    return attack_members(builder(), images or noise_images(), course, folder, shadows=shadows, **options)


def test_without_noise_it_finds_who_was_in(tmp_path):
    found = attacked(tmp_path, 0.0)
    assert roc_auc_score(found.included, found.scores) > 0.8
    audit = audit_training(make_plan(0.0), found)
    assert audit.method == "shadow models, one run"
    assert audit.epsilon_lower > 0.3
    assert (audit.theoretical, audit.share, audit.contradicts) == (float("inf"), None, False)


def test_with_much_noise_it_finds_next_to_nothing(tmp_path):
    found = attacked(tmp_path, 200.0)
    audit = audit_training(make_plan(200.0), found)
    assert 0.35 < roc_auc_score(found.included, found.scores) < 0.65
    assert audit.epsilon_lower < 0.3
    assert "subsampled" in audit.method
    assert audit.details["looks_at_units"] is True


def test_models_are_trained_on_their_halves_alone(tmp_path, monkeypatch):
    images, seen = noise_images(), []
    real = members_module.train_aside

    def spied(network, units, *args, **options):
        seen.append(units)
        return real(network, units, *args, **options)

    monkeypatch.setattr(members_module, "train_aside", spied)
    attacked(tmp_path, 0.0, steps=1, shadows=4)
    halves = read_halves(tmp_path)
    assert len(seen) == len(halves) == 5
    assert (halves[1:].sum(axis=0) == 2).all()
    for units, had in zip(seen, halves, strict=True):
        assert units.n_units == had.sum()
        assert torch.equal(units.images, images.images[torch.from_numpy(had)])


def test_a_part_has_all_images_of_its_units_and_no_others():
    images = noise_images(units=5, each=3)
    part = part_of(images, np.array([False, True, True, False, True]))
    assert (part.n_units, part.units.tolist()) == (3, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert torch.equal(part.images, images.images[[3, 4, 5, 6, 7, 8, 12, 13, 14]])
    assert torch.equal(part.labels, images.labels[[3, 4, 5, 6, 7, 8, 12, 13, 14]])


def test_a_unit_is_asked_by_the_mean_over_its_images():
    images, network = noise_images(units=4, each=2), builder()()
    chances = torch.softmax(network(images.images).double(), dim=1)
    own = chances.gather(1, images.labels[:, None])[:, 0]
    odds = torch.log(own / (1 - own)).detach().view(4, 2).mean(dim=1)
    np.testing.assert_allclose(answers(network, images, CPU), odds.numpy(), rtol=1e-5)


def test_answers_that_are_not_finite_are_named():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.constant_(network[1].bias, float("nan"))
    with pytest.raises(ConfigError, match="not finite"):
        log_odds(network, torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64), CPU)


def test_what_was_stopped_goes_on_and_what_is_done_is_not_trained_again(tmp_path):
    steps, models = [], []
    options = {
        "steps": 3,
        "shadows": 4,
        "before_model": models.append,
        "after_step": lambda record: steps.append(record.step),
    }
    assert attacked(tmp_path, 0.0, should_stop=lambda: len(steps) >= 5, **options) is None
    assert steps == [1, 2, 3, 1, 2]
    assert read_heard(tmp_path / "target") is not None
    assert read_state(tmp_path / "target") is None, "weights of a model that is done are kept no longer"
    assert read_state(tmp_path / "shadow-01").step == 2
    halves, told = read_halves(tmp_path), read_heard(tmp_path / "target").scores
    found = attacked(tmp_path, 0.0, **options)
    assert steps == [1, 2, 3] * 5
    assert (read_halves(tmp_path) == halves).all()
    assert (found.included == halves[0]).all()
    assert (read_heard(tmp_path / "target").scores == told).all()
    again = attacked(tmp_path, 0.0, **options)
    assert steps == [1, 2, 3] * 5
    assert (again.scores == found.scores).all()


def test_steps_that_a_crash_loses_are_counted(tmp_path):
    """A target that was trained half remembers half: nobody may take that for a training that keeps its secrets."""
    steps = []

    def crash(record):
        steps.append(record.step)
        if len(steps) in (2, 5):  # in the target and in the first shadow, before anything was saved
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            attacked(tmp_path, 1.0, steps=3, shadows=4, after_step=crash)
    found = attacked(tmp_path, 1.0, steps=3, shadows=4, after_step=crash)
    assert steps == [1, 2, 3] * 5, "lost steps are not taken again"
    assert [read_heard(tmp_path / name).steps for name in ("target", "shadow-01", "shadow-02")] == [1, 1, 3]
    assert found.lost == 4
    assert audit_training(make_plan(1.0, 3), found).details["steps_lost"] == 4


def test_the_targets_coins_tell_nothing_of_the_shadows_halves(tmp_path, monkeypatch):
    """What the bound rests on: the coins are independent of all that the attacker knows."""
    tossed, images = [], noise_images()

    def toss(units):
        tossed.append(units)
        return np.arange(units) % 2 == 0

    monkeypatch.setattr(members_module, "toss", toss)
    monkeypatch.setattr(members_module, "fresh_generator", np.random.default_rng)
    rows = []
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert attacked(folder, 0.0, shadows=4, images=images, should_stop=lambda: True) is None
        halves = read_halves(folder)
        assert (halves[0] == toss(UNITS)).all()
        rows.append([(halves[0] == row).mean() for row in halves[1:]])
    assert len(tossed) == 80, "one toss for each target, beside those of this test"
    agreement = np.array(rows)
    assert agreement.min() < 0.5 < agreement.max()
    assert abs(agreement - 0.5).max() < 5 * 0.5 / UNITS**0.5
    assert agreement.mean() == pytest.approx(0.5, abs=5 * 0.5 / (160 * UNITS) ** 0.5)


def test_a_training_set_that_is_too_small_is_named(tmp_path):
    with pytest.raises(ConfigError, match="15 units in the training set are too few to attack, 20 are needed"):
        attacked(tmp_path, 0.0, images=noise_images(15))
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_for_its_owner_alone(tmp_path):
    attacked(tmp_path, 1.0, steps=2, shadows=4)
    for path in (*tmp_path.rglob("*"),):
        assert path.stat().st_mode & 0o077 == 0, path


def test_every_model_has_a_ledger_that_says_what_it_is(tmp_path):
    attacked(tmp_path, 1.0, steps=2, shadows=4)
    for name in ("target", *(f"shadow-{i:02d}" for i in range(1, 5))):
        entries = read_ledger(tmp_path / name / AUDIT_LEDGER)
        assert entries.steps == 2
        (note,) = [entry for entry in entries if entry["kind"] == "audit"]
        assert name in note["detail"]
        assert "not for release" in note["detail"]


def test_kept_answers_of_other_units_are_refused(tmp_path):
    attacked(tmp_path, 0.0, steps=1, shadows=4)
    with pytest.raises(DataError, match="other units, or are not 6"):
        attacked(tmp_path, 0.0, steps=1, shadows=6)
    with pytest.raises(DataError, match="other units"):
        attacked(tmp_path, 0.0, steps=1, shadows=4, images=make_splits()["train"])
    (tmp_path / "target" / "heard.safetensors").replace(tmp_path / "shadow-01" / "heard.safetensors")
    with pytest.raises(DataError, match="shadow-01 is of other units"):
        attacked(tmp_path, 0.0, steps=1, shadows=4)


@pytest.mark.parametrize("name", ["halves.safetensors", "target/heard.safetensors"])
def test_damaged_files_are_named(tmp_path, name):
    attacked(tmp_path, 0.0, steps=1, shadows=4)
    (tmp_path / name).write_bytes(b"no tensors")
    with pytest.raises(DataError, match=name.rpartition("/")[2]):
        attacked(tmp_path, 0.0, steps=1, shadows=4)


def test_an_odd_number_of_shadows_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="even number"):
        attacked(tmp_path, 0.0, shadows=5)
    assert not list(tmp_path.iterdir())
