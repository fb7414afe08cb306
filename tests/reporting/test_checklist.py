from __future__ import annotations

import copy

import pytest

from dpeq.reporting.checklist import UNKNOWN, checklist, tier


@pytest.fixture
def answers(report):
    """The answers by item of a report after a change, and where they point."""

    def of(change=lambda report: None, base=report):
        changed = copy.deepcopy(base)
        change(changed)
        found = checklist(changed)
        return {row["item"]: row["answer"] for rows in found.values() for row in rows}

    return of


def test_every_layer_and_every_constant_is_there(report):
    found = report["checklist"]
    assert [row["layer"] for row in found["nist"]] == ["top"] * 2 + ["middle"] * 5 + ["bottom"] * 3
    items = {row["item"] for row in found["ponomareva"]}
    assert {
        "Setting",
        "Unit of privacy",
        "Neighbouring data sets",
        "Accesses to the data that are covered",
        "Tuning",
        "Releases that are covered",
        "Number of units N",
        "Batch size B",
        "Steps T",
        "Sampling rate q",
        "Noise multiplier",
        "Clipping norm C",
        "Sampling as run",
        "Sampling as accounted",
        "Accountant",
        "Delta",
        "Epsilon",
        "Formal statement",
        "Code and versions",
        "Evidence",
    } == items
    assert len(items) == len(found["ponomareva"])


def test_answers_carry_the_runs_own_figures(answers):
    said = answers()
    for item, part in {
        "Number of units N": "4,708 patients",
        "Batch size B": "512",
        "Steps T": "400 taken of 400 planned, about 43.5 passes",
        "Noise multiplier": "1.3895",
        "Clipping norm C": "4 views",
        "Delta": "1\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁴, which is 0.4708 times 1 / N",
        "Epsilon": "8.00 for each patient: tier 2 of 3",
        "Privacy parameters": "μ = 1.938",
        "Accountant": "dp-accounting, rounded pessimistically, in both directions; 4 accountants are compared",
        "Unit of privacy": "One patient",
        "Utility": "the same network without privacy reaches AUC",
        "Algorithms and their correctness": "was not audited",
        "Code and versions": "torch 2.13.0",
    }.items():
        assert part in said[item], item
    assert "NOT covered" not in said["Releases that are covered"]


AUDIT = {"method": "m", "epsilon_lower": 1.5, "confidence": 0.95, "delta": 1e-4, "details": {}, "attack": {}}
STEP = {"one_step_epsilon_lower": 2.0, "one_step_theoretical": 1.0}
HIDDEN = AUDIT | {"name": "shadow", "epsilon_lower": None, "attack": None, "details": {"hits_above_limit": False}}


@pytest.mark.parametrize(
    ("change", "item", "part"),
    [
        (lambda r: r["provenance"].update(rng="seeded"), "Side channels", "OPEN: the noise came from a fixed seed"),
        (lambda r: r["provenance"].update(log_private_metrics=True), "Side channels", "logged without noise"),
        (lambda r: r["provenance"].update(log_private_metrics=True), "Releases that are covered", "NOT covered"),
        (lambda r: r["provenance"].update(processes=4), "Setting", "4 processes that trust each other"),
        (lambda r: r["guarantee"].update(unit="image"), "Unit of privacy", "how much less is not stated"),
        (lambda r: r.update(companion=None), "Utility", "no run without privacy stands beside"),
        (lambda r: r["guarantee"].update(epsilon=12.0), "Epsilon", "tier 3"),
        (
            lambda r: r.update(audits=[AUDIT]),
            "Algorithms and their correctness",
            "; an audit found epsilon to be at least 1.500 with confidence 95.0",
        ),
        (
            lambda r: r.update(audits=[AUDIT | {"epsilon_lower": 1.0}, AUDIT, AUDIT | {"epsilon_lower": 0.0}]),
            "Algorithms and their correctness",
            "; the strongest of 3 audits found epsilon to be at least 1.500 with confidence 95.0",
        ),
        (
            lambda r: r.update(audits=[AUDIT, HIDDEN]),
            "Algorithms and their correctness",
            "; an audit found epsilon to be at least 1.500 with confidence 95.0",
        ),
        (
            lambda r: r.update(audits=[HIDDEN]),
            "Algorithms and their correctness",
            "; an attack on the training units (shadow) did not contradict the plan by its bound on epsilon; its "
            "figures are not shown here.",
        ),
        (
            lambda r: r.update(unfinished_audits=["one-run", "step-2"]),
            "Algorithms and their correctness",
            "recomputed from the plan's constants; begun and without a result that can be read: one-run, step-2.",
        ),
        (
            lambda r: r.update(audits=[AUDIT | {"details": STEP}, AUDIT | {"epsilon_lower": 3.0}]),
            "Algorithms and their correctness",
            "; REFUTED. The audit (m) finds that the epsilon of a single step is at least 2.000 with confidence 95.0",
        ),
    ],
)
def test_answers_change_with_the_facts(answers, change, item, part):
    assert part not in answers()[item]
    assert part in answers(change)[item]


def test_a_group_of_images_is_pointed_to(answers):
    def grouped(report):
        report["guarantee"]["unit"] = "image"
        report["group_risk"] = {"group": 6}

    assert "For a patient with 6 images" in answers(grouped)["Unit of privacy"]


def test_bias_names_the_groups_that_differ_most(answers):
    def groups(*rows):
        shown = [{"value": value, "accuracy": {"value": share}} for value, share in rows]
        entry = {"attribute": "sex", "attribute_title": "Sex", "groups": shown}
        return lambda report: report["utility"].update(subgroups=[entry])

    assert "By class: recall is lowest for normal" in answers()["Bias"]
    assert "not measured, so nothing is known" in answers()["Bias"]
    assert "not measured" in answers(groups(("F", 0.9)))["Bias"]
    said = answers(groups(("F", 0.9), ("M", 0.8), ("X", 0.85)))["Bias"]
    assert "Sex: accuracy 80.0\N{NO-BREAK SPACE}% (M) to 90.0\N{NO-BREAK SPACE}% (F)" in said


def test_nothing_is_claimed_where_nothing_can_be_known(answers, open_report):
    for item in ("Data collection", "Access control", "Security"):
        assert UNKNOWN in answers()[item]
    said = answers(base=open_report)
    assert said["Epsilon"] == "Infinite: no protection."
    assert said["Releases that are covered"] == "Nothing is covered."
    assert "Not examined" in said["Side channels"]
    assert "compared" not in " ".join(said.values())


def test_tiers_are_those_of_the_paper_at_their_borders():
    assert [tier(epsilon)[:6] for epsilon in (0.0, 1.0, 1.0001, 10.0, 10.0001)] == [
        "tier 1",
        "tier 1",
        "tier 2",
        "tier 2",
        "tier 3",
    ]
    assert tier("inf") == "no tier: there is no protection"
