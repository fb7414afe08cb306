"""The verb ``audit`` on whole trainings: canaries, shadow models, and going on after a stop."""

import dataclasses
import itertools
import json
import os
import signal

import pytest
import torch
from audit_calls import go, limits_are, record
from finished_runs import cell_config, lay_down, plan_at

import dpeq.training.prepare as prepare_module
from benchmarks.killable import UNITS, make_splits
from dpeq.audit.members import steps_left
from dpeq.audit_verb import training as training_module
from dpeq.console import RichObserver
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.audit.curves import profile_of
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.ledger import read_ledger
from dpeq.reporting.audit import read_audits, trainings_for_audits
from dpeq.training.files import fingerprint_key
from dpeq.training.loop import TrainingResult


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


def test_other_data_than_the_runs_is_refused(tmp_path, recipe):
    folder = lay_down(tmp_path, cell_config(tmp_path, "run", 8.0))
    fingerprint_key(tmp_path, make=True)
    with pytest.raises(DataError, match="fingerprint"):
        go(folder, method="one-run")
    assert not list(folder.rglob("audit.json"))


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
