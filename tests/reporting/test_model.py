from __future__ import annotations

import copy
import json
import shutil
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from safetensors.numpy import save_file

from dpeq.errors import DataError
from dpeq.privacy import accounting
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import assess
from dpeq.privacy.risk_words import officer
from dpeq.reporting.files import check_schema
from dpeq.reporting.model import build_report
from dpeq.resources import asset
from dpeq.training.loop import PrivateRecord


def test_report_satisfies_the_published_schema(report, open_report):
    schema = json.loads(asset("privacy_reports", "report.schema.json").read_text())
    for one in (report, open_report):
        jsonschema.Draft202012Validator(schema).validate(one)
        assert json.loads(json.dumps(one, allow_nan=False)) == one


def test_contract_fields_carry_the_runs_numbers(report, private_run):
    plan = json.loads((private_run / "plan.json").read_text())
    guarantee = report["guarantee"]
    assert guarantee["epsilon"] == plan["epsilon"]["pld"]
    assert {key: guarantee[key] for key in ("delta", "mu", "unit", "neighbouring", "accountant")} == {
        key: plan[key] for key in ("delta", "mu", "unit", "neighbouring", "accountant")
    }
    assert report["plan"] == plan
    assert report["ledger"]["steps"] == 400
    metrics = json.loads((private_run / "metrics.json").read_text())
    assert report["utility"]["auc"] == metrics["test"]["auc"]
    assert report["validation"] == metrics["val"]
    assert report["companion"]["utility"]["accuracy"]["value"] > report["utility"]["accuracy"]["value"]
    assert report["companion"]["private"] is False
    assert report["companion"]["same_network"] is True
    assert report["companion"]["same_settings"] is True


def test_every_accountant_answers_for_the_steps_that_were_spent(report, make_run, private_run):
    plan = json.loads((private_run / "plan.json").read_text())["epsilon"]
    said = report["accountants"]
    assert said["missing"] == {}
    assert {name: said["epsilon"][name] for name in plan} == pytest.approx(plan)
    assert said["epsilon"]["opacus_prv"] == pytest.approx(plan["prv_upper"], rel=1e-3)
    assert said["gap"] == pytest.approx(plan["pld"] - plan["prv_lower"])


def test_accountants_that_contradict_each_other_make_no_report(private_run, monkeypatch):
    lie = accounting.Comparison({"pld": 7.99, "prv_lower": 8.1, "rdp": 9.0}, {})
    monkeypatch.setattr("dpeq.reporting.accountants.remembered_comparison", lambda *numbers: lie)
    with pytest.raises(accounting.AccountingError, match="contradict each other"):
        build_report(private_run)


def test_an_accountant_without_an_answer_is_named_with_its_reason_and_asked_again(private_run, monkeypatch, tmp_path):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path))
    asked = []

    def compare(*numbers, opacus):
        asked.append(numbers)
        return accounting.Comparison({"pld": 7.9976, "rdp": 8.8}, {"prv": "it broke", "opacus_prv": "too slow"})

    monkeypatch.setattr(accounting, "compare", compare)
    for _ in range(2):
        said = build_report(private_run)["accountants"]
        assert said == {
            "epsilon": {"pld": 7.9976, "rdp": 8.8},
            "missing": {"prv": "it broke", "opacus_prv": "too slow"},
            "gap": None,
        }
    assert len(asked) == 2  # silence is not remembered


def test_without_noise_there_is_nothing_to_compare(open_report):
    assert open_report["accountants"] == {"epsilon": {}, "missing": {}, "gap": None}
    assert open_report["risk"] is None


def test_risk_and_sentences_are_those_of_the_plan(report, private_run):
    risk = assess(PrivacyPlan.read(private_run / "plan.json"))
    assert report["risk"] == json.loads(json.dumps(risk.to_dict()))
    assert report["guarantee"]["officer"] == list(officer(risk))
    assert report["guarantee"]["mu"] == report["risk"]["mu"]


def test_images_come_only_when_asked_for_and_are_pointed_out(private_run, monkeypatch):
    item = {"png": "iVBORw0KGgo=", "truth": "normal", "answer": "normal", "probability": 0.9, "correct": True}
    asked = []

    def pictures(run, count, *, data_root):
        asked.append((run, count, data_root))
        return {"consent": "asked for", "items": [item] * count}

    monkeypatch.setattr("dpeq.reporting.images.evaluation_images", pictures)
    plain, shown = build_report(private_run), build_report(private_run, images=2, data_root=Path("data"))
    assert asked == [(private_run, 2, Path("data"))]
    assert plain["images"] is None
    assert shown["images"] == {"consent": "asked for", "items": [item, item]}
    assert titles(shown) - titles(plain) == {"Images of people are shown"}


def test_symmetry_and_energy_are_passed_on(make_run, report):
    assert report["symmetry"]["worst_error"] == 1.2e-6
    assert report["resources"]["energy"] is None
    energy = {"kwh": 0.012, "basis": "counters of the processor"}
    assert build_report(make_run(energy=energy))["resources"]["energy"] == energy


def test_scores_of_an_older_version_are_refused_with_the_mend(make_run):
    metrics = json.loads((make_run() / "metrics.json").read_text())
    del metrics["val"]["ece"]
    with pytest.raises(DataError, match=r"lacks scores of its val split.*run 'dpeq evaluate"):
        build_report(make_run(metrics=metrics))


def test_fairness_speaks_of_the_groups_that_are_shown(make_run, report):
    def text(one):
        return next(entry["text"] for entry in one["assumptions"] if entry["title"] == "Fairness between groups")

    assert "does not break scores down" in text(report)
    metrics = json.loads((make_run() / "metrics.json").read_text())
    group = dict.fromkeys(("auc", "accuracy", "balanced_accuracy", "average_precision"), metrics["test"]["accuracy"])
    group |= {"value": "F", "n": 624, "patients": 300, "sensitivity": None, "specificity": None}
    entry = {"attribute": "sex", "attribute_title": "Sex", "groups": [group], "withheld": 0, "note": ""}
    metrics["test"]["subgroups"] = [entry]
    assert "broken down by Sex" in text(build_report(make_run(metrics=metrics)))


def test_curve_starts_at_nothing_and_ends_at_the_guarantee(report):
    curve = report["epsilon_curve"]
    assert curve[0] == [0, 0.0]
    assert curve[-1] == [400, report["guarantee"]["epsilon"]]
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(curve))


def test_same_run_same_report(report, private_run, open_run):
    assert build_report(private_run, companion=open_run) == report


@pytest.mark.parametrize("steps", [0, 60, 399])
def test_a_finished_run_with_a_cut_ledger_is_refused(make_run, steps):
    with pytest.raises(DataError, match=f"ends at step {steps}: the ledger was cut"):
        build_report(make_run(steps=steps, stopped="interrupted"))


@pytest.mark.parametrize("change", [{"step": 401}, {"ledger_sha256": "0" * 64}, {"run": {"plan_sha256": "0" * 64}}])
def test_a_ledger_that_the_newest_checkpoint_does_not_know_is_refused(make_run, change):
    run = make_run()
    entries = read_ledger(run / "ledger.jsonl")
    facts = {"step": 400, "ledger_sha256": entries.step_heads[400], "run": {"plan_sha256": entries[0]["plan_sha256"]}}
    (run / "checkpoints").mkdir()

    def checkpoint(step, facts):
        save_file({}, run / "checkpoints" / f"step-{step:06d}.safetensors", {"facts": json.dumps(facts)})

    checkpoint(400, facts)
    assert build_report(run)["ledger"]["steps"] == 400
    checkpoint(400, facts | change)
    with pytest.raises(DataError, match=r"not the one that step-000400\.safetensors was written under"):
        build_report(run)
    (run / "checkpoints" / "step-000400.safetensors").write_bytes(b"torn")
    checkpoint(390, facts | {"step": 390})  # with the line of another step: an older file counts then
    with pytest.raises(DataError, match="step-000390"):
        build_report(run)


@pytest.mark.parametrize(
    ("resumed", "lost", "words"),
    [(1, 0, "resumed once. No step was lost"), (3, 7, "resumed 3 times. 7 of its steps were spent and went into no")],
)
def test_a_run_that_was_resumed_says_so_and_what_was_lost(make_run, resumed, lost, words):
    found = build_report(make_run(resumed=resumed, steps_lost=lost))["assumptions"]
    (text,) = [entry["text"] for entry in found if entry["title"] == "The run was interrupted"]
    assert words in text
    assert "The run was interrupted" not in titles(build_report(make_run(resumed=0, steps_lost=0)))


def test_points_that_need_attention_are_named_and_only_those(make_run, report):
    assert not any(entry["kind"] == "attention" for entry in report["assumptions"])
    run = make_run(rng="seeded", seed=3, log_private_metrics=True, warnings=["2 files were skipped"])
    with (run / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"kind":"st')
    found = titles(build_report(run))
    assert {
        "Noise from a fixed seed",
        "Private quantities were logged",
        "Warning of the run",
        "Torn last line in the ledger",
    } == found


def test_logged_private_quantities_are_named_with_the_places_where_they_lie(make_run):
    places = ["tb/ in the run directory", "MLflow at https://mlflow.clinic.example"]
    found = build_report(make_run(log_private_metrics=True, tracking=places))["assumptions"]
    (text,) = [entry["text"] for entry in found if entry["title"] == "Private quantities were logged"]
    words = {
        "units": "number of sampled patients",
        "loss": "loss",
        "gradient_norm": "gradient norm",
        "clipped": "clipped fraction",
        "not_finite": "gradients that are not finite",
    }
    assert {field.name for field in fields(PrivateRecord)} == set(words)  # a new quantity wants words of its own
    for part in (*words.values(), *places, "No noise covers them", "output"):
        assert part in text, part
    quiet = build_report(make_run(tracking=places))
    assert "Private quantities were logged" not in titles(quiet)
    assert "mlflow" not in json.dumps(quiet).lower()


def test_what_assumptions_are_written_from_travels_with_the_report(make_run):
    facts = {
        "log_private_metrics": True,
        "warnings": ["The views are few."],
        "tracking": ["mlflow/runs"],
        "starting_weights": {"name": "public.safetensors", "sha256": "ab" * 32, "fresh": ["classifier.weight"]},
        "resumed": 2,
        "steps_lost": 3,
    }
    told = build_report(make_run(**facts))["provenance"]
    assert {key: told[key] for key in facts} == facts
    plain = build_report(make_run())["provenance"]
    assert [plain[key] for key in facts] == [False, [], [], None, 0, 0]


def test_a_seed_does_not_travel_with_the_report(make_run):
    report = build_report(make_run(rng="seeded", seed=48271, command="dpeq train demo training.seed=48271 --baseline"))
    assert report["provenance"]["command"] == "dpeq train demo training.seed=<seed> --baseline"
    assert (report["provenance"]["rng"], report["provenance"]["seed"]) == ("seeded", None)
    assert "48271" not in json.dumps(report)


def test_image_as_unit_is_pointed_out(make_run, report):
    plan = json.loads((make_run() / "plan.json").read_text()) | {"unit": "image"}
    run = make_run(plan=plan, data={"unit": "image"})
    assert "One image is protected, not one patient" in titles(build_report(run))
    assert "One image is protected, not one patient" not in titles(report)


@pytest.mark.parametrize("change", [{"noise_multiplier": 0.9}, {"steps": 600}, {"sample_rate": 0.2}])
def test_a_plan_that_states_less_than_it_costs_is_refused(make_run, change):
    """Plan and ledger agree with each other here; only the accountant can tell that they lie."""
    plan = json.loads((make_run() / "plan.json").read_text()) | change
    with pytest.raises(DataError, match="but its constants cost"):
        build_report(make_run(plan=plan))


def test_without_privacy_everything_says_so(open_report):
    guarantee = open_report["guarantee"]
    assert (guarantee["epsilon"], guarantee["private"], guarantee["mu"]) == ("inf", False, None)
    assert open_report["epsilon_curve"] == []
    assert "No guarantee" in titles(open_report)
    assert not any(entry["kind"] == "assumption" for entry in open_report["assumptions"])


def test_tampered_plan_is_refused(make_run):
    run = make_run()
    path = run / "plan.json"
    path.write_text(path.read_text().replace('"noise_multiplier": 1.3895', '"noise_multiplier": 2.5'))
    with pytest.raises(DataError, match="belongs to another plan"):
        build_report(run)


def test_tampered_ledger_is_refused(make_run):
    run = make_run()
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:100] + lines[101:]))
    with pytest.raises(DataError, match="Line 101"):
        build_report(run)


def test_steps_beyond_the_plan_are_refused(make_run):
    """A plan with fewer steps than its ledger: neither the plan nor the lines can be exchanged without notice."""
    run, short = make_run(), make_run(steps=10)
    plan = json.loads((run / "plan.json").read_text()) | {"steps": 10}
    (short / "plan.json").write_text(json.dumps(plan))
    (short / "ledger.jsonl").write_bytes((run / "ledger.jsonl").read_bytes())
    with pytest.raises(DataError):
        build_report(short)


@pytest.mark.parametrize("name", ["plan.json", "ledger.jsonl", "run.json", "metrics.json", "config.yaml"])
def test_an_incomplete_run_is_refused_by_name(make_run, name):
    run = make_run()
    (run / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        build_report(run)


def test_broken_or_contradicting_run_files_are_refused(make_run, tmp_path):
    run = make_run()
    (run / "run.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        build_report(run)
    with pytest.raises(DataError, match="no test scores"):
        build_report(make_run(metrics={"weights": "ema", "test": {}}))
    with pytest.raises(DataError, match="disagree"):
        build_report(make_run(non_private=True))
    with pytest.raises(DataError, match="protects one image"):
        build_report(make_run(data={"unit": "image"}))
    with pytest.raises(DataError, match="no run directory"):
        build_report(tmp_path / "missing")


def test_companion_must_be_open_and_comparable(make_run, private_run, open_run):
    with pytest.raises(DataError, match="with privacy"):
        build_report(private_run, companion=make_run())
    with pytest.raises(DataError, match="other data"):
        build_report(make_run(data={"name": "mednist"}), companion=open_run)


def test_a_companion_of_other_settings_or_unit_is_not_taken_for_the_same(open_run, image_run, private_run, tmp_path):
    from dpeq.reporting.html import render_html

    companion = tmp_path / "other"
    shutil.copytree(open_run, companion)
    with pytest.raises(DataError, match="has one patient as its unit, this run one image"):
        build_report(image_run, companion=companion)
    (companion / "config.yaml").write_text("model: {group: D4}\nname: other\nprivacy: {epsilon: inf}\n")
    other = build_report(private_run, companion=companion)["companion"]
    assert (other["same_network"], other["same_settings"]) == (True, True)
    (companion / "config.yaml").write_text("model: {group: D4}\ntraining: {lr: 0.1}\n")
    report = build_report(private_run, companion=companion)
    assert (report["companion"]["same_network"], report["companion"]["same_settings"]) == (True, False)
    page = " ".join(render_html(report).split())
    assert "The same network, trained with other settings without privacy" in page
    assert "is not the cost of privacy alone" in page
    assert "The same network trained without" not in page


def test_schema_errors_name_the_place(report):
    broken = copy.deepcopy(report)
    broken["guarantee"]["epsilon"] = "inf"
    with pytest.raises(DataError, match="guarantee"):
        check_schema(broken, "report")
    del broken["guarantee"]
    with pytest.raises(DataError, match="'guarantee' is a required property"):
        check_schema(broken, "report")


def titles(report: dict) -> set[str]:
    return {entry["title"] for entry in report["assumptions"] if entry["kind"] == "attention"}
