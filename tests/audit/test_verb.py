"""The verb ``audit``: where audits lie, how they go on, what is refused, and the command line."""

import json
import os
import signal
from pathlib import Path

import pytest
from audit_calls import go, record
from finished_runs import plan_at
from typer.testing import CliRunner

from dpeq.audit.kept import read_scores
from dpeq.audit_verb import verb as audit_verb
from dpeq.cli import app
from dpeq.console import RichObserver
from dpeq.errors import ConfigError, DataError
from dpeq.report_verb import _inside
from dpeq.reporting.audit import read_audits


def test_an_audit_that_is_over_stays_over(recipe, tmp_path):
    folder = tmp_path / "out"
    assert go(recipe, "privacy.epsilon=8", folder=folder)[0] == 0
    with pytest.raises(ConfigError, match="is over"):
        go(recipe, "privacy.epsilon=8", folder=folder)


def test_an_audit_among_runs_is_none_of_them(recipe, run, tmp_path):
    """A summary of the folder does not take it for a run that cannot be read."""
    go(recipe, "privacy.epsilon=8", method="one-run", folder=tmp_path / "audit")
    assert _inside(tmp_path) == [run]


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


def test_audits_of_a_run_lie_where_its_report_finds_them(run, tmp_path):
    for folder in (tmp_path / "elsewhere", run / "audit", run / "audits" / "Step 2", run / "audits" / "a" / "b"):
        with pytest.raises(ConfigError, match=r"beside each other in .*audits; give --out .*audits/step-2, say"):
            go(run, folder=folder)
    assert go(run, folder=run / "audits" / "step-2")[0] == 0
    assert go(run)[0] == 0
    assert [audit["name"] for audit in read_audits(run)] == ["step", "step-2"]


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
