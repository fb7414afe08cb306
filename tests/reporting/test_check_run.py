"""A report held against its run, the companion beside, and its page: whatever was changed is found and named."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from jinja2 import StrictUndefined, Template
from made_audits import begin_audit, put_audit, training_audit
from typer.testing import CliRunner

from dpeq.cli import app
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.check import check_report
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.check_run import UNVERIFIED, check_page, check_run, difference
from dpeq.reporting.html import render_html, write_report
from dpeq.reporting.model import build_report


@pytest.fixture(scope="module")
def room(make_run, open_run, tmp_path_factory):
    """A run with a warning and its companion, side by side."""
    room = tmp_path_factory.mktemp("room")
    shutil.copytree(make_run(warnings=["2 files were skipped"], resumed=1), room / "ours")
    begin_audit(room / "ours", "one-run")
    shutil.copytree(open_run, room / "theirs")
    return room


@pytest.fixture(scope="module")
def true(room):
    return build_report(room / "ours", companion=room / "theirs")


def test_all_of_a_true_report_is_that_of_its_run(room, true):
    assert [line for line in check_run(true, room / "ours") if line.startswith(UNVERIFIED)] == []


FORGERIES = {
    "run": lambda r: r.update(run="another"),
    "unfinished_audits": lambda r: r.update(unfinished_audits=[]),
    "model/parameters": lambda r: r["model"].update(parameters=12),
    "model/certified_by": lambda r: r["model"].update(certified_by="the authority"),
    "data/title": lambda r: r["data"].update(title="CheXpert"),
    "data/counts/test/images": lambda r: r["data"]["counts"]["test"].update(images=99_999),
    "data/card/source": lambda r: r["data"]["card"].update(source="Consented patients"),
    "data/sha256": lambda r: r["data"].update(sha256="0" * 64),
    "ledger/notes/approved": lambda r: r["ledger"]["notes"].update(approved=7),
    "ledger/torn": lambda r: r["ledger"].update(torn="x"),
    "utility/weights": lambda r: r["utility"].update(weights="raw"),
    "validation": lambda r: r.update(validation=None),
    "companion/utility/brier/low": lambda r: r["companion"]["utility"]["brier"].update(low=0.0),
    "companion/same_network": lambda r: r["companion"].update(same_network=False),
    "resources/seconds/train": lambda r: r["resources"]["seconds"].update(train=1.0),
    "provenance/command": lambda r: r["provenance"].update(command="dpeq train other"),
    "provenance/config_sha256": lambda r: r["provenance"].update(config_sha256="0" * 64),
    "provenance/started": lambda r: r["provenance"].update(started="2020-01-01"),
    "provenance/versions/opacus": lambda r: r["provenance"]["versions"].update(opacus="9.9"),
    "provenance/warnings": lambda r: r["provenance"].update(warnings=[]),
    "provenance/resumed": lambda r: r["provenance"].update(resumed=0),
    "provenance/approved": lambda r: r["provenance"].update(approved="yes"),
    "provenance/log_private_metrics": lambda r: r["provenance"].update(log_private_metrics=True),
}


@pytest.mark.parametrize("place", FORGERIES)
def test_whatever_differs_from_the_run_is_named(room, true, place):
    forged = copy.deepcopy(true)
    FORGERIES[place](forged)
    with pytest.raises(Disagreement, match=f"^{place} (is|has) .*build the report again"):
        check_run(forged, room / "ours")


def test_what_the_run_cannot_tell_is_said(true, room, tmp_path, make_run, image_run):
    alone = shutil.copytree(room / "ours", tmp_path / "ours")
    told = [line for line in check_run(true, alone) if line.startswith(UNVERIFIED)]
    assert len(told) == 1
    assert "run without privacy is not beside" in told[0]
    (alone / "metrics.json").unlink()
    assert "holds no scores" in check_run(true, alone)[-1]
    item = {"png": "iVBORw0KGgo=", "truth": "normal", "answer": "normal", "probability": 0.9, "correct": True}
    shown = true | {"images": {"consent": "asked for", "items": [item]}}
    assert "images are of the test split" in check_run(shown, room / "ours")[-1]
    assert "no patient has more than 3" in check_run(build_report(image_run, images_per_patient=3), image_run)[-1]


def test_audits_are_compared_where_the_run_has_no_scores(make_run, tmp_path):
    run = shutil.copytree(make_run(), tmp_path / "run")
    plan = PrivacyPlan.read(run / "plan.json")
    put_audit(run, "shadow", training_audit(plan, 0.5, judged=600, kind="member", shadows=8))
    begin_audit(run, "one-run")
    reports = [build_report(run), build_report(run, attacks_on_units=True)]
    (run / "metrics.json").unlink()
    for report in reports:
        told = check_run(report, run)
        assert f"Its audits are those of the files in {run}." in told
        assert told[-1].endswith("holds no scores; all but plan, ledger and audits is as the report states it.")
        for key, value in (("audits", []), ("unfinished_audits", []), ("audit_trainings", 0)):
            with pytest.raises(Disagreement, match=f"^{key} (is|has) .*build the report again"):
                check_run(report | {key: value}, run)


def test_another_run_under_the_companions_name_is_found(true, room, tmp_path, make_run):
    shutil.copytree(room / "ours", tmp_path / "ours")
    shutil.copytree(room / "theirs", tmp_path / "theirs")
    metrics = json.loads((tmp_path / "theirs" / "metrics.json").read_text())
    metrics["test"]["brier"]["value"] /= 2
    (tmp_path / "theirs" / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(Disagreement, match="companion/utility/brier/value"):
        check_run(true, tmp_path / "ours")


def test_a_page_that_shows_anything_else_is_refused(true, tmp_path):
    page, path = write_report(true, tmp_path)
    assert "report.html shows what report.json says." in check_report(path)
    page.write_text(page.read_text().replace("Test AUC", "Best AUC"))
    with pytest.raises(DataError, match=r"report\.html beside it shows something else"):
        check_report(path)
    older = copy.deepcopy(true)
    older["provenance"]["report_dpeq"] = "0.0.1"
    (tmp_path / "report.pdf").touch()
    with pytest.raises(Disagreement, match="older than this page and lacks a part"):
        check_page(path, Template("{{ part }}", undefined=StrictUndefined).render, "0.0.1")
    html, pdf = check_page(path, lambda: render_html(older), "0.0.1")
    assert html.startswith(f"{UNVERIFIED}report.html, which dpeq 0.0.1 drew")
    assert pdf.startswith(f"{UNVERIFIED}report.pdf")


def test_the_verb_takes_the_run_that_lies_elsewhere(true, room, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, path = write_report(true, tmp_path)

    def dpeq(*arguments):
        result = CliRunner().invoke(app, ["report", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    alone, with_run = dpeq(path, "--check"), dpeq(path, "--check", "--run", room / "ours")
    assert "\nNot verified: the run is not at hand" in alone
    assert "which audits there were, what they counted" in alone
    assert "Not verified" not in with_run
    assert "ok  Scores, model, data, audits, warnings" in with_run
    for arguments, reason in (
        ((room / "ours", "--run", room / "ours"), "--run belongs to --check"),
        ((path, path, "--check", "--run", room / "ours"), "name one report"),
    ):
        with pytest.raises(ConfigError, match=reason):
            dpeq(*arguments)


def test_what_json_tells_apart_differs():
    assert difference({"a": 1}, {"a": True}, "x") == "x/a is 1, and True"
    assert difference([1], [1, 2], "x") == "x has 1 entries, and 2"
    assert difference({"a": None}, {}, "x") == "x/a is added, and not so"
    assert difference({}, {"a": None}, "x") == "x/a is missing, and not so"
    assert difference({"a": [1, {"b": "c"}]}, {"a": [1, {"b": "c"}]}, "x") is None
