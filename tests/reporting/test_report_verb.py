"""The verb ``report`` as it is typed; reports themselves are tested beside."""

from __future__ import annotations

import json
import shutil

import pytest
from finished_runs import cell_config, lay_down
from made_audits import put_audit, training_audit
from typer.testing import CliRunner

from dpeq.cli import app
from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def dpeq(*arguments):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_report_is_written_and_verified(private_run, open_run, tmp_path):
    run = shutil.copytree(private_run, tmp_path / "run")
    assert "Report:" in dpeq(run, "--companion", open_run).output
    report = json.loads((run / "report.json").read_text())
    assert report["companion"]["same_network"]
    page = (run / "report.html").read_bytes()
    dpeq(run, "--companion", open_run, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_bytes() == page
    checked = dpeq(run, tmp_path / "again" / "report.json", "--check").output
    assert checked.count("computed anew") == 4
    assert checked.count("unbroken") == 1  # the run is at hand for the first alone


def test_images_per_patient_reach_the_report(image_run, tmp_path):
    dpeq(image_run, "--images-per-patient", 3, "--out", tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["group_risk"]["group"] == 3


def test_a_pdf_of_the_page_before_goes_with_it(private_run, tmp_path):
    """It may show figures that the new page leaves out."""
    room, alone = tmp_path / "runs", shutil.copytree(private_run, tmp_path / "alone")
    room.mkdir()
    lay_down(room, cell_config(room, "x", 8.0))
    for folder, name in ((alone, "report"), (room, "summary")):
        pdf = folder / f"{name}.pdf"
        pdf.write_bytes(b"%PDF of a page with more figures")
        assert f"Removed: {pdf} was of the page before; --pdf writes it anew." in dpeq(folder).output
        assert not pdf.exists()
        assert (folder / f"{name}.html").is_file()
        assert "Removed" not in dpeq(folder).output


def test_a_report_with_images_is_for_its_owner_alone(private_run, tmp_path, monkeypatch):
    item = {"png": "iVBORw0KGgo=", "truth": "normal", "answer": "normal", "probability": 0.9, "correct": True}
    pictures = {"consent": "asked for", "items": [item]}
    monkeypatch.setattr("dpeq.reporting.images.evaluation_images", lambda run, count, data_root: pictures)
    dpeq(private_run, "--images", 1, "--out", tmp_path / "shown")
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "shown").iterdir()} == {0}


def test_figures_of_attacks_on_units_are_shown_where_they_are_asked_for(make_run, tmp_path):
    run = make_run()
    plan = PrivacyPlan.read(run / "plan.json")
    put_audit(run, "shadow", training_audit(plan, 0.5, judged=600, kind="member", shadows=8))
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    dpeq(run, "--attacks-on-units", "--out", shown)
    dpeq(run, "--out", hidden)
    attacks = [json.loads((folder / "report.json").read_text())["audits"][0]["attack"] for folder in (shown, hidden)]
    assert (attacks[0]["members"] + attacks[0]["others"], attacks[1]) == (600, None)
    assert {path.stat().st_mode & 0o077 for path in shown.iterdir()} == {0}
    assert {path.stat().st_mode & 0o077 for path in hidden.iterdir()} != {0}
    for folder in (shown, hidden):
        checked = dpeq(folder, "--check", "--run", run).output
        assert "ok  Scores, model, data, audits, warnings" in checked
        assert ("Not verified: the attack shadow" in checked) is (folder == hidden)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["RUN", "--check", "--attacks-on-units"], "only reads"),
        (["RUN", "RUN", "--attacks-on-units"], "--attacks-on-units belongs to the report of one run"),
        (["RUN", "--check", "--out", "elsewhere"], "only reads"),
        (["RUN", "--check", "--images", 2], "only reads"),
        (["RUN", "--data-root", "data"], "give --images as well"),
        (["RUN", "RUN", "--images-per-patient", 2], "belongs to the report of one run"),
        (["RUN", "--images-per-patient", 2], "protects whole patients"),
    ],
)
def test_options_that_would_do_nothing_are_refused(private_run, arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        dpeq(*(private_run if word == "RUN" else word for word in arguments))


def test_a_pdf_without_its_library_is_refused_before_any_work(private_run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dpeq\[pdf\]'"):
        dpeq(private_run, "--pdf")
