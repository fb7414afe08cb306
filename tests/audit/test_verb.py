"""The verb ``audit``: what it writes and prints, how it goes on, what it refuses, and its exit codes."""

import dataclasses
import io
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import typer
from finished_runs import cell_config, lay_down, plan_at
from rich.console import Console
from scipy.stats import norm
from typer.testing import CliRunner

import dpeq.training.prepare as prepare_module
from benchmarks.killable import UNITS, make_config, make_splits
from dpeq.audit.kept import read_scores
from dpeq.audit.members import steps_left
from dpeq.audit.picture import draw_roc
from dpeq.audit_verb import training as training_module
from dpeq.audit_verb import verb as audit_verb
from dpeq.audit_verb.outcome import Outcome
from dpeq.cli import app
from dpeq.config import write_config
from dpeq.console import RichObserver
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.audit.curves import profile_of
from dpeq.privacy.audit.membership import attack_quality
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.gaussian import add_noise
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.report_verb import _inside
from dpeq.reporting.audit import contradiction, read_audits, trainings_for_audits
from dpeq.reporting.numbers import show
from dpeq.training.files import fingerprint_key
from dpeq.training.loop import TrainingResult
from dpeq.training.start import Start, fingerprint


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe whose plan needs no accountant and whose data is made up."""
    write_config(make_config(tmp_path, steps=4, seed=None), tmp_path / "recipe.yaml")
    monkeypatch.setattr("dpeq.planning.plan_of", lambda config: plan_at(config.privacy.epsilon))
    monkeypatch.setattr(prepare_module, "load_data", lambda prepared, progress=None: make_splits())
    return tmp_path / "recipe.yaml"


@pytest.fixture
def run(tmp_path):
    """A finished run on the made-up data."""
    key = fingerprint_key(tmp_path, make=True)
    return lay_down(tmp_path, cell_config(tmp_path, "run", 8.0), data_sha256=fingerprint(make_splits(), key))


def record(folder):
    return json.loads((folder / "audit.json").read_text())


def go(target, *overrides, **changes):
    options = {"method": "step", "canaries": 100, "repetitions": 120, "shadows": 4, "certain": None, "folder": None}
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        audit_verb.audit(
            Console(file=out, width=120),
            Console(file=err, width=120),
            str(target),
            list(overrides),
            **{**options, "data_root": None, **changes},
        )
    except typer.Exit as left:
        code = left.exit_code
    return code, out.getvalue(), err.getvalue()


def limits_are(attack, allowed):
    """Hits that the audited mechanism allows, where false alarms are few: nothing else may stand beside an attack."""
    few = [(rate, hits) for rate, hits in attack["limit"] if 0 < rate < 0.2]
    assert len(few) > 2
    few += [(row["false_alarms_high"], row["allowed"]) for row in attack["hit_rates"]]
    for rate, hits in few:
        assert allowed(rate) <= hits <= 1.001 * allowed(rate)


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


def test_an_audit_that_is_over_stays_over(recipe, tmp_path):
    folder = tmp_path / "out"
    assert go(recipe, "privacy.epsilon=8", folder=folder)[0] == 0
    with pytest.raises(ConfigError, match="is over"):
        go(recipe, "privacy.epsilon=8", folder=folder)


def test_a_run_gets_the_audit_for_its_report(run):
    code, told, _ = go(run)
    assert code == 0
    assert f"'dpeq report {run}' shows it" in told
    (audit,) = read_audits(run)
    assert audit == {"name": "step", **record(run / "audits" / "step")}
    begun = json.loads((run / "audits" / "step" / "begun.json").read_text())
    assert (begun["run"], begun["plan_sha256"]) == (Start.read(run).run, plan_at(8.0).sha256)
    assert all(isinstance(show(value), str) for value in audit["details"].values())


def test_a_training_with_canaries_of_a_run(run, recipe):
    code, told, _ = go(run, "training.physical_units=64", method="one-run")
    assert code == 0
    assert "A training of 4 steps" in told
    assert "not for release" in told
    folder = run / "audits" / "one-run"
    audit = record(folder)
    assert audit["details"]["canaries"] == 100
    assert audit["details"]["theoretical"] == plan_at(8.0).epsilon_spent
    assert audit["epsilon_lower"] <= plan_at(8.0).epsilon_spent
    assert read_ledger(folder / AUDIT_LEDGER).steps == 4
    assert read_ledger(run / "ledger.jsonl").steps == 4


def test_a_training_with_images_as_canaries(recipe, tmp_path):
    folder = tmp_path / "out"
    code, told, _ = go(recipe, "privacy.epsilon=8", method="black-box", folder=folder)
    assert code == 0
    assert "input canaries" in record(folder)["method"]
    assert json.loads((folder / "begun.json").read_text())["method"] == "black-box"
    assert "not for release" in told


def test_an_audit_among_runs_is_none_of_them(recipe, run, tmp_path):
    """A summary of the folder does not take it for a run that cannot be read."""
    go(recipe, "privacy.epsilon=8", method="one-run", folder=tmp_path / "audit")
    assert _inside(tmp_path) == [run]


def test_other_data_than_the_runs_is_refused(tmp_path, recipe):
    folder = lay_down(tmp_path, cell_config(tmp_path, "run", 8.0))
    fingerprint_key(tmp_path, make=True)
    with pytest.raises(DataError, match="fingerprint"):
        go(folder, method="one-run")
    assert not list(folder.rglob("audit.json"))


@pytest.mark.parametrize("method", ["step", "one-run"])
def test_a_stop_loses_nothing(recipe, tmp_path, monkeypatch, method):
    """The signal comes in the middle; the same command goes on from there, and ends."""
    folder, begun = tmp_path / "out", []
    name = "loading" if method == "step" else "stepped"
    real = getattr(RichObserver, name)

    def interrupted(self, *args):
        begun.append(1)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(RichObserver, name, interrupted)
    code, _, told = go(recipe, "privacy.epsilon=8", folder=folder, method=method)
    assert code == 143
    assert "the same command goes on" in told
    assert not (folder / "audit.json").exists()
    if method == "step":
        assert [len(scores) for scores in read_scores(folder)] == [3, 0]
        kept = read_scores(folder)[0]
    assert go(recipe, "privacy.epsilon=8", folder=folder, method=method)[0] == 0
    if method == "step":
        assert [len(scores) for scores in read_scores(folder)] == [120, 120]
        assert read_scores(folder)[0][:3] == kept
        assert len(begun) == 240
    else:
        assert len(begun) == 4
        assert record(folder)["details"]["steps_lost"] == 0


def test_an_audit_that_did_not_say_which_run_it_is_of_goes_on(run, monkeypatch):
    real = RichObserver.loading
    monkeypatch.setattr(RichObserver, "loading", lambda self, done, total: os.kill(os.getpid(), signal.SIGINT))
    assert go(run)[0] == 130
    path = run / "audits" / "step" / "begun.json"
    begun = json.loads(path.read_text())
    path.write_text(json.dumps(begun | {"run": "another"}))
    with pytest.raises(ConfigError, match="was begun with run 'another'"):
        go(run)
    path.write_text(json.dumps({key: value for key, value in begun.items() if key != "run"}))
    monkeypatch.setattr(RichObserver, "loading", real)
    assert go(run)[0] == 0


def test_another_audit_does_not_go_on_in_its_place(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    monkeypatch.setattr(RichObserver, "loading", lambda self, done, total: os.kill(os.getpid(), signal.SIGINT))
    assert go(recipe, "privacy.epsilon=8", folder=folder)[0] == 130
    for changes, what in (({"repetitions": 130}, "repetitions 120"), ({"certain": False}, "certain True")):
        with pytest.raises(ConfigError, match=what):
            go(recipe, "privacy.epsilon=8", folder=folder, **changes)
    with pytest.raises(ConfigError, match="plan_sha256"):
        go(recipe, "privacy.epsilon=1", folder=folder)


def test_shadow_models_of_a_run(run, recipe):
    code, told, _ = go(run, method="shadow")
    assert code == 0
    assert "5 trainings of 4 steps; time on this machine: about" in told
    assert "computed from the training images" in told
    assert "a summary of runs counts what it spends" in told
    assert f"'dpeq report {run} --attacks-on-units' shows it" in told
    (audit,) = read_audits(run)
    assert audit["name"] == "shadow"
    assert audit["method"].startswith("shadow models, one run")
    assert audit["details"]["shadow_models"] == 4
    assert audit["details"]["trainings"] == 5
    assert audit["details"]["looks_at_units"] is True
    assert audit["attack"]["of"] == "training"
    assert audit["attack"]["members"] + audit["attack"]["others"] == UNITS
    ledgers = sorted((run / "audits").rglob(AUDIT_LEDGER))
    assert [path.parent.name for path in ledgers] == ["shadow-01", "shadow-02", "shadow-03", "shadow-04", "target"]
    assert {read_ledger(path).steps for path in ledgers} == {4}
    assert trainings_for_audits(run, plan_at(8.0)) == 5
    for path in (run / "audits").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    limits_are(audit["attack"], profile_of(plan_at(8.0)).hit_rate)
    assert read_ledger(run / "ledger.jsonl").steps == 4


def test_shadow_models_without_privacy_have_no_limit_beside_them(recipe, tmp_path):
    """An attack that finds nothing here would prove nothing there."""
    folder = tmp_path / "out"
    code, told, _ = go(recipe, "privacy.epsilon=inf", method="shadow", folder=folder)
    assert code == 0
    assert "the plan says" in told
    body = record(folder)
    assert body["details"]["theoretical"] == "inf"
    assert body["details"]["share"] is None
    assert body["delta"] * UNITS <= 0.01
    assert body["attack"]["limit"] is None
    assert all(row["allowed"] is None for row in body["attack"]["hit_rates"])


def test_shadow_models_go_on_after_a_stop(recipe, tmp_path, monkeypatch):
    folder, begun = tmp_path / "out", []
    real = RichObserver.stepped

    def interrupted(self, *args):
        begun.append(1)
        if len(begun) == 7:  # in the second model of four steps
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(RichObserver, "stepped", interrupted)
    assert go(recipe, "privacy.epsilon=8", folder=folder, method="shadow")[0] == 143
    assert not (folder / "audit.json").exists()
    assert steps_left(folder, 4, 4) == 5 * 4 - 7
    with pytest.raises(ConfigError, match="shadows 4, not 6"):
        go(recipe, "privacy.epsilon=8", folder=folder, method="shadow", shadows=6)
    assert go(recipe, "privacy.epsilon=8", folder=folder, method="shadow")[0] == 0
    assert len(begun) == 5 * 4
    assert steps_left(folder, 4, 4) == 0


@pytest.mark.parametrize("method", ["one-run", "shadow"])
def test_an_audit_does_not_go_on_with_other_settings_or_data(recipe, tmp_path, monkeypatch, method):
    folder, options = tmp_path / "out", {"method": method, "folder": tmp_path / "out"}
    monkeypatch.setattr(RichObserver, "stepped", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert go(recipe, "privacy.epsilon=8", **options)[0] == 130
    before = sorted((path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="settings_sha256"):
        go(recipe, "privacy.epsilon=8", "training.lr=0.25", **options)
    splits = make_splits()
    other = dataclasses.replace(splits["train"], images=splits["train"].images + 1)
    monkeypatch.setattr(prepare_module, "load_data", lambda prepared, progress=None: {**splits, "train": other})
    with pytest.raises(ConfigError, match="data_sha256"):
        go(recipe, "privacy.epsilon=8", **options)
    assert sorted((path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file()) == before


def test_a_run_whose_files_were_changed_is_not_attacked_in_its_place(run):
    """An attack on other settings would find nothing, and would stand in the run's report."""
    config, plan = (run / "config.yaml").read_text(), (run / "plan.json").read_bytes()
    (run / "config.yaml").write_text(config.replace("lr: 0.5", "lr: 0.25"))
    with pytest.raises(DataError, match="lr"):
        go(run)
    (run / "config.yaml").write_text(config)
    plan_at(1.0).write(run / "plan.json")
    with pytest.raises(DataError, match=r"plan\.json is not the plan of the run's ledger"):
        go(run)
    (run / "plan.json").write_bytes(plan)
    assert not list((run / "audits").glob("*/*"))
    assert go(run)[0] == 0


def test_every_model_begins_with_weights_of_its_own(recipe, monkeypatch, tmp_path):
    built, real = [], training_module._build

    def spied(asked, prepared):
        built.append(real(asked, prepared))
        return built[-1]

    monkeypatch.setattr(training_module, "_build", spied)
    monkeypatch.setattr("dpeq.audit.members.train_aside", stopped_at_once)
    assert go(recipe, "privacy.epsilon=8", method="shadow", folder=tmp_path / "out")[0] == 130
    assert go(recipe, "privacy.epsilon=8", method="shadow", folder=tmp_path / "out")[0] == 130
    assert len(built) == 4
    weights = [torch.nn.utils.parameters_to_vector(model.parameters()) for model in built]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def stopped_at_once(network, *args, **options):
    return TrainingResult(network, network, 0, 0.0, stopped=True)


def test_damaged_files_are_left_alone_and_another_folder_is_asked_for(recipe, tmp_path, monkeypatch):
    """Their ledgers say what was spent."""
    folder = tmp_path / "out"
    monkeypatch.setattr(RichObserver, "stepped", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert go(recipe, "privacy.epsilon=8", method="one-run", folder=folder)[0] == 130
    (folder / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"state\.safetensors cannot be used .*; give --out another folder\."):
        go(recipe, "privacy.epsilon=8", method="one-run", folder=folder)
    assert read_ledger(folder / AUDIT_LEDGER).steps == 1


def test_audits_of_a_run_lie_where_its_report_finds_them(run, tmp_path):
    for folder in (tmp_path / "elsewhere", run / "audit", run / "audits" / "Step 2", run / "audits" / "a" / "b"):
        with pytest.raises(ConfigError, match=r"beside each other in .*audits; give --out .*audits/step-2, say"):
            go(run, folder=folder)
    assert go(run, folder=run / "audits" / "step-2")[0] == 0
    assert go(run)[0] == 0
    assert [audit["name"] for audit in read_audits(run)] == ["step", "step-2"]


def test_what_contradicts_the_plan_exits_with_1(run, monkeypatch):
    def quieter(self, total, noise):
        return add_noise(total, std=self.plan.noise_multiplier * self.plan.max_grad_norm / 4, stream=noise)

    monkeypatch.setattr(PlanOptimizer, "noised", quieter)
    code, _, told = go(run)
    assert code == 1
    assert "contradicts the plan" in told
    plan = plan_at(8.0)
    assert "allows" in contradiction(record(run / "audits" / "step"), plan, 4, plan.epsilon_spent)


def test_what_cannot_be_audited_is_refused(recipe, run, tmp_path):
    with pytest.raises(ConfigError, match="--method is guess"):
        go(recipe, method="guess")
    with pytest.raises(ConfigError, match="--certain"):
        go(recipe, method="one-run", certain=True)
    with pytest.raises(ConfigError, match="99 repetitions"):
        go(recipe, "privacy.epsilon=8", repetitions=99, folder=tmp_path / "a")
    with pytest.raises(ConfigError, match="19 canaries"):
        go(recipe, "privacy.epsilon=8", method="one-run", canaries=19, folder=tmp_path / "b")
    with pytest.raises(ConfigError, match="5 shadow models"):
        go(recipe, "privacy.epsilon=8", method="shadow", shadows=5, folder=tmp_path / "b")
    with pytest.raises(ConfigError, match="without privacy"):
        go(recipe, "privacy.epsilon=inf", folder=tmp_path / "c")
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        go(run, "privacy.epsilon=1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"plan\.json"):
        go(tmp_path / "empty")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_numbers_give_the_same_picture(tmp_path, suffix):
    attack = attack_quality([0.1 * i for i in range(200)], [i % 3 > 0 for i in range(200)])
    profile = profile_of(plan_at(8.0))
    body = Outcome([audit_one_run([0.0, 1.0], [True, False], delta=1e-5)], attack, profile, "training").to_dict()
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        draw_roc(body["attack"], "An attack", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_command_line_hands_everything_on(monkeypatch):
    given = {}
    monkeypatch.setattr(audit_verb, "audit", lambda out, err, target, overrides, **kwargs: given.update(kwargs))
    words = [
        "audit",
        "recipe",
        "--method",
        "one-run",
        "--canaries",
        "30",
        "--repetitions",
        "200",
        "--coins",
        "--shadows",
        "8",
    ]
    result = CliRunner().invoke(app, [*words, "--out", "somewhere", "--data-root", "data"])
    assert result.exit_code == 0
    assert given == {
        "method": "one-run",
        "canaries": 30,
        "repetitions": 200,
        "shadows": 8,
        "certain": False,
        "folder": Path("somewhere"),
        "data_root": Path("data"),
    }
