"""The risk in a report: back from JSON bit for bit, and of all images of a patient."""

from __future__ import annotations

import json

import pytest

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import assess, assess_epsilon
from dpeq.reporting.model import build_report
from dpeq.reporting.risks import group_risk, risk_from_dict


def test_a_risk_comes_back_from_a_report_bit_for_bit(private_run):
    plan = PrivacyPlan.read(private_run / "plan.json")
    unbounded = assess_epsilon(1000.0, 1e-5, "image", note="Nothing better was to be had.")
    for risk in (assess(plan), assess(plan, 100), assess(plan, 0), unbounded):
        assert risk_from_dict(json.loads(json.dumps(risk.to_dict()))) == risk
    with pytest.raises(DataError, match="none that dpeq writes"):
        risk_from_dict({"epsilon": 1.0})


def test_a_group_of_images_is_asked_for_where_it_means_something(image_run, private_run, open_run):
    images, patients, open_plan = (PrivacyPlan.read(run / "plan.json") for run in (image_run, private_run, open_run))
    one, three = assess(images), group_risk(images, 400, 3)
    assert (three.group, three.unit) == (3, "image")
    assert three.advantage > one.advantage
    assert group_risk(images, 400, 1) == one
    assert group_risk(patients, 400, None) is None
    for plan, count, reason in (
        (patients, 3, "protects whole patients"),
        (PrivacyPlan.from_dict(open_plan.to_dict() | {"unit": "image"}), 3, "not private"),
        (images, 0, "most images"),
    ):
        with pytest.raises(ConfigError, match=reason):
            group_risk(plan, 400, count)


def test_the_report_of_images_states_the_patients_risk_and_says_where(image_run):
    alone, grouped = build_report(image_run), build_report(image_run, images_per_patient=3)
    assert alone["group_risk"] is None
    assert grouped["group_risk"]["group"] == 3
    assert grouped["risk"] == alone["risk"]
    texts = [next(e["text"] for e in r["assumptions"] if e["title"].startswith("One image")) for r in (alone, grouped)]
    assert "--images-per-patient K" in texts[0]
    assert "What holds for 3 images of one patient is stated" in texts[1]
