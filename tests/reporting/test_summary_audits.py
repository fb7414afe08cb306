"""What audits of runs mean for several runs together: what they spent, and whose guarantee they refuted."""

import json
import math
import re
import shutil

import pytest
from finished_runs import DELTA, RATE, SIGMA, STEPS, cell_config, lay_down, plan_at
from made_audits import put_audit, put_ledger, step_audit, training_audit
from rich.console import Console

from dpeq.errors import DataError
from dpeq.privacy.composition import Part, compose
from dpeq.report_verb import _inside, check_reports, report_runs
from dpeq.reporting.audit import trainings_for_audits
from dpeq.reporting.summary import build_summary
from dpeq.reporting.summary_check import check_summary
from dpeq.reporting.summary_html import render_summary, write_summary

REFUTING = {"louder": 6.0}  # a step of six times the influence that the plan allows


@pytest.fixture
def runs(tmp_path):
    cells = {"x-0": 8.0, "x-1": 8.0, "x-open": math.inf}
    return [lay_down(tmp_path / "runs", cell_config(tmp_path, name, epsilon)) for name, epsilon in cells.items()]


def total_of(trainings):
    return compose([Part(RATE, SIGMA[8.0], STEPS * trainings)], DELTA).epsilon


def test_every_training_for_an_audit_counts_as_one_more_run_finished_or_not(runs):
    assert build_summary(runs)["privacy"]["epsilon"] == pytest.approx(total_of(2))
    one = training_audit(plan_at(8.0), 0.5)
    put_ledger(put_audit(runs[0], "one-run", one), plan_at(8.0), STEPS)
    put_audit(runs[0], "step", step_audit(plan_at(8.0)))
    put_ledger(runs[1] / "audits" / "stopped", plan_at(8.0), 1)
    for name in ("target", "shadow-01"):
        put_ledger(runs[1] / "audits" / "shadow" / name, plan_at(8.0), STEPS)
        put_ledger(runs[2] / "audits" / "shadow" / name, plan_at(math.inf), STEPS)
    summary = build_summary(runs)
    assert {row["run"]: row["audit_trainings"] for row in summary["runs"]} == {"x-0": 1, "x-1": 3, "x-open": 2}
    privacy = summary["privacy"]
    assert privacy["audit_trainings"] == 4
    assert privacy["epsilon"] == pytest.approx(total_of(6))
    told = " ".join(privacy["sentences"])
    assert "Two private runs with four trainings for audits, taken together, satisfy (ε, δ)" in told
    assert "is counted with the whole plan, finished or not" in told
    assert "with 4 trainings for audits" in render_summary(summary)
    shutil.rmtree(runs[1] / "audits")
    assert "audits" not in render_summary(build_summary(runs[1:]))


def test_what_an_audit_says_that_it_took_counts_where_its_ledgers_are_gone(runs):
    shadows = training_audit(plan_at(8.0), 0.5, kind="member", shadows=4)
    folder = put_audit(runs[0], "shadow", shadows)
    assert trainings_for_audits(runs[0], plan_at(8.0)) == 5
    for name in range(3):
        put_ledger(folder / str(name), plan_at(8.0), STEPS)
    assert trainings_for_audits(runs[0], plan_at(8.0)) == 5
    for name in range(3, 7):
        put_ledger(folder / str(name), plan_at(8.0), STEPS)
    assert trainings_for_audits(runs[0], plan_at(8.0)) == 7
    assert trainings_for_audits(runs[1], plan_at(8.0)) == 0


def test_a_ledger_of_another_plan_or_a_damaged_one_is_refused(runs):
    put_ledger(runs[0] / "audits" / "one-run", plan_at(1.0), 1)
    with pytest.raises(DataError, match=r"audits/one-run/audit-ledger\.jsonl belongs to another plan"):
        build_summary(runs)
    (runs[0] / "audits" / "one-run" / "audit-ledger.jsonl").write_text("")
    with pytest.raises(DataError, match=r"audit-ledger\.jsonl"):
        build_summary(runs)


def test_a_run_that_an_audit_refutes_is_said_on_top_and_told_as_on_its_own_page(runs, tmp_path):
    before = build_summary(runs)
    assert before["privacy"]["refuted_runs"] == []
    assert "REFUTED" not in render_summary(before)
    put_audit(runs[1], "step", step_audit(plan_at(8.0), **REFUTING))
    summary = build_summary(runs)
    row = next(row for row in summary["runs"] if row["run"] == "x-1")
    assert row["refuted"].startswith("The audit (one private step, 4000 times) finds that epsilon is at least")
    assert [row["refuted"] for row in summary["runs"] if row["run"] != "x-1"] == [None, None]
    privacy = summary["privacy"]
    assert privacy["refuted_runs"] == ["x-1"]
    assert privacy["sentences"][0].startswith("THE GUARANTEE IS FALSE of x-1: an audit measured more than it allows.")
    assert "Two private runs, taken together, were claimed to satisfy (ε, δ)" in privacy["sentences"][1]
    page = render_summary(summary)
    text = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "<title>REFUTED: " in page
    assert text.index("GUARANTEE REFUTED x-1: The audit") < text.index("All private runs together")
    assert "All private runs together – refuted by an audit" in text
    assert "x-1 REFUTED" in text
    _, path = write_summary(summary, tmp_path)
    assert check_summary(path, runs=runs[0].parent)[-1] == "summary.html shows what summary.json says."
    assert "The one private run was claimed to have spent" in " ".join(build_summary(runs[1:])["privacy"]["sentences"])


def test_audits_of_unfinished_runs_are_held_against_the_whole_plan(tmp_path, runs):
    begun = lay_down(tmp_path / "runs", cell_config(tmp_path, "x-begun", 8.0), finished=False, steps=1)
    put_audit(begun, "step", step_audit(plan_at(8.0)))

    def row():
        return next(row for row in build_summary([*runs, begun])["runs"] if row["run"] == "x-begun")

    assert row()["spent"] < json.loads(step_audit(plan_at(8.0)))["epsilon_lower"]  # one step of four was taken
    assert row()["refuted"] is None
    shutil.rmtree(begun / "audits")
    put_audit(begun, "step", step_audit(plan_at(8.0), **REFUTING))
    assert "finds that epsilon is at least" in row()["refuted"]


@pytest.mark.parametrize("what", ["refuted", "audit_trainings"])
def test_a_summary_that_hides_an_audit_is_refused_where_the_runs_are_at_hand(runs, tmp_path, what):
    summary = build_summary(runs)
    if what == "refuted":
        put_audit(runs[1], "step", step_audit(plan_at(8.0), **REFUTING))
    else:
        put_ledger(runs[1] / "audits" / "one-run", plan_at(8.0), 0)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    assert "audits are as the summary states them" in check_summary(path)[-1]
    with pytest.raises(DataError, match=f"x-1/{what} is not what lies in"):
        check_summary(path, runs=runs[0].parent)


def test_no_audit_is_taken_for_a_run(runs, capsys):
    room = runs[0].parent
    put_ledger(put_audit(runs[0], "one-run", training_audit(plan_at(8.0), 0.5)), plan_at(8.0), STEPS)
    put_ledger(runs[0] / "audits" / "shadow" / "target", plan_at(8.0), STEPS)
    assert _inside(room) == sorted(runs)
    for folder in (runs[0], runs[0] / "audits", runs[0] / "audits" / "one-run", runs[0] / "audits" / "shadow"):
        assert _inside(folder) == []
    out = Console(width=200, markup=False, highlight=False)
    options = {"companion": None, "images": None, "images_per_patient": None, "data_root": None, "pdf": False}
    options["attacks_on_units"] = False
    report_runs(out, [*runs, runs[0] / "audits"], folder=None, **options)
    told = capsys.readouterr().out
    assert f"Left out: {runs[0] / 'audits'} is no run." in told
    assert "Two private runs with two trainings for audits" in told
    check_reports(out, [room])
    assert f"ok  The runs in {room} say the same" in capsys.readouterr().out
