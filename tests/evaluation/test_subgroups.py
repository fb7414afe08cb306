"""Scores by group: those of the group's own cases, and no group so small that it, or its rest, points at somebody."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, recall_score, roc_auc_score

from dpeq.data.images import ImageSet
from dpeq.errors import DataError
from dpeq.evaluation.cases import cases_of
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.evaluation.predict import predict_cases
from dpeq.evaluation.subgroups import LEAST_CASES, LEAST_PATIENTS, groups_of_cases, subgroup_scores, subgroups_of
from dpeq.training import scoring

SCORES = {"auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "average_precision"}


def predictions(n: int, k: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of every class in every tenth of the cases; better than chance, not perfect, with ties."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    logits = rng.normal(0, 1.2, (n, k)).round(1)
    logits[np.arange(n), labels] += 1.0
    exp = np.exp(logits)
    return exp / exp.sum(axis=1, keepdims=True), labels


def scores(groups: dict[str, list[str]], **options: object) -> list[dict]:
    n = len(next(iter(groups.values())))
    return subgroup_scores(*predictions(n), ("a", "b"), groups, n_bootstrap=20, **options)


@pytest.mark.parametrize("clustered", [False, True])
def test_a_group_is_scored_as_if_it_were_a_set_of_its_own(clustered):
    proba, labels = predictions(90)
    values = np.array(["female", "male", "other"])[np.arange(90) // 30]
    owners = np.arange(90) // 2 if clustered else None
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"sex": list(values)}, owners=owners, n_bootstrap=50, seed=3)
    assert json.loads(json.dumps(entry)) == entry
    assert (entry["attribute"], entry["attribute_title"], entry["withheld"]) == ("sex", "Sex", 0)
    for group, value in zip(entry["groups"], ("female", "male", "other"), strict=True):
        rows = values == value
        assert set(group) == {"value", "n", "patients", *SCORES}
        assert (group["value"], group["n"], group["patients"]) == (value, 30, 15 if clustered else 30)
        p, t = proba[rows], labels[rows]
        answer = p.argmax(axis=1)
        assert group["auc"]["value"] == pytest.approx(roc_auc_score(t, p[:, 1]))
        assert group["average_precision"]["value"] == pytest.approx(average_precision_score(t, p[:, 1]))
        assert group["accuracy"]["value"] == pytest.approx((answer == t).mean())
        assert group["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(t, answer))
        assert group["sensitivity"]["value"] == pytest.approx(recall_score(t, answer, pos_label=1))
        assert group["specificity"]["value"] == pytest.approx(recall_score(t, answer, pos_label=0))
        alone = evaluate_predictions(
            p, t, ("a", "b"), owners=owners[rows] if owners is not None else None, n_bootstrap=50, seed=3
        )
        for key in ("auc", "accuracy", "balanced_accuracy", "average_precision"):
            assert group[key] == pytest.approx(alone[key])


def test_several_classes_have_means_and_no_sensitivity():
    proba, labels = predictions(90, k=3)
    values = ["0-9"] * 45 + ["10-19"] * 45
    (entry,) = subgroup_scores(proba, labels, ("a", "b", "c"), {"age": values}, n_bootstrap=20)
    for group, rows in zip(entry["groups"], (slice(45), slice(45, None)), strict=True):
        expected = np.mean([roc_auc_score(labels[rows] == c, proba[rows, c]) for c in range(3)])
        assert group["auc"]["value"] == pytest.approx(expected)
        expected = np.mean([average_precision_score(labels[rows] == c, proba[rows, c]) for c in range(3)])
        assert group["average_precision"]["value"] == pytest.approx(expected)
        assert group["sensitivity"] is group["specificity"] is None


def by_class(entry: dict, *unlike: str) -> list[str]:
    """The groups with class scores; these are there together or not at all."""
    for group in entry["groups"]:
        assert group["accuracy"] is not None
        assert len({group[key] is None for key in SCORES - {"accuracy", *unlike}}) == 1
    return [group["value"] for group in entry["groups"] if group["auc"] is not None]


def with_positives(*counts: tuple[str, int, int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Values, labels and predictions of groups of so many negative and positive cases each."""
    values = [value for value, negatives, positives in counts for _ in range(negatives + positives)]
    labels = np.concatenate([[0] * negatives + [1] * positives for _, negatives, positives in counts])
    score = np.random.default_rng(0).random(len(labels))
    return values, labels, np.stack([1 - score, score], axis=1)


@pytest.mark.parametrize("positives", [0, 1, 4])
def test_none_and_few_of_a_class_look_alike(positives):
    """One positive case among 12 would have its answer told: a sensitivity of 0 or 1. The other group's class scores,
    subtracted from those of all cases, would tell the same."""
    values, labels, proba = with_positives(("female", 24, 24), ("male", 12 - positives, positives))
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"sex": values}, n_bootstrap=20)
    assert len(entry["groups"]) == 2
    assert by_class(entry) == []
    assert "accuracy" in entry["note"]


def test_five_patients_of_each_class_are_enough_and_the_poorest_hides_a_poor_rest():
    values, labels, proba = with_positives(("0-9", 7, 5), ("10-19", 24, 24), ("20-29", 20, 9))
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"age": values}, n_bootstrap=20)
    assert by_class(entry) == ["0-9", "10-19", "20-29"]
    values, labels, proba = with_positives(("0-9", 8, 4), ("10-19", 24, 24), ("20-29", 20, 9))
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"age": values}, n_bootstrap=20)
    assert by_class(entry) == ["10-19"]
    assert len(entry["groups"]) == 3


def test_of_several_classes_each_must_have_five_patients():
    proba, labels = predictions(90, k=3)
    order = np.argsort(labels == 2, kind="stable")  # the first 60 cases lack class 2
    values = ["0-9"] * 30 + (["10-19"] * 10 + ["20-29"] * 20) * 2
    values[-1:-6:-1] = ["0-9"] * 5
    names = ("a", "b", "c")
    (entry,) = subgroup_scores(proba[order], labels[order], names, {"age": values}, n_bootstrap=20)
    assert by_class(entry, "sensitivity", "specificity") == ["0-9", "10-19", "20-29"]
    persons = np.arange(90)
    persons[-5:] = 89  # five cases of one patient
    (entry,) = subgroup_scores(proba[order], labels[order], names, {"age": values}, patients=persons, n_bootstrap=20)
    assert by_class(entry, "sensitivity", "specificity") == ["20-29"]


@given(
    drawn=st.lists(
        st.tuples(st.sampled_from("aaabbc"), st.integers(0, 1), st.integers(0, 80)), min_size=40, max_size=150
    ),
    other=st.integers(0, 40),
    shift=st.integers(0, 40),
)
def test_no_difference_that_is_told_is_of_few_patients(drawn, other, shift):
    """Between two groups of two attributes, or their rests: of all cases, and for class scores of each class."""
    site = np.array([value for value, *_ in drawn])
    labels = np.array([label for _, label, _ in drawn])
    labels[:2] = 0, 1
    patients = np.array([patient for *_, patient in drawn])
    device = np.array(site)
    device[shift : shift + other] = "a"
    values = {"site": site, "device": device}
    entries = subgroup_scores(
        np.full((len(drawn), 2), 0.5), labels, ("a", "b"), values, patients=patients, n_bootstrap=1
    )
    whole = frozenset(range(len(drawn)))

    def told(entry: dict, only: list[str]) -> list[frozenset[int]]:
        column = values[entry["attribute"]]
        named = {v.removesuffix(" and others too few to show"): v for v in (g["value"] for g in entry["groups"])}
        merged = {name for name, value in named.items() if name != value}
        groups = {
            named[n]: frozenset(i for i, v in enumerate(column) if v == n or (n in merged and v not in named))
            for n in named
        }
        kept = [groups[value] for value in only]
        return [group for group in (*kept, whole.difference(*kept)) if group]

    first, second = [told(e, [g["value"] for g in e["groups"]]) for e in entries]
    for one in first:
        for other in second:
            apart = list(one ^ other)
            assert not apart or (len(apart) >= LEAST_CASES and len(set(patients[apart])) >= LEAST_PATIENTS)
    first, second = [told(e, by_class(e)) for e in entries]
    for one in first + [whole]:
        for other in second + [whole]:
            apart = list(one ^ other)
            for c in (0, 1):
                assert not apart or len({patients[i] for i in apart if labels[i] == c}) >= LEAST_PATIENTS


def test_an_attribute_that_nearly_repeats_another_is_withheld():
    """Nineteen of the twenty cases of a site are of one device: the twentieth would be told by subtraction."""
    site, device = ["site 1"] * 20 + ["site 2"] * 40, ["GE"] * 19 + ["Siemens"] * 41
    first, second = scores({"site": site, "device": device})
    assert [group["n"] for group in first["groups"]] == [20, 40]
    assert (second["groups"], second["withheld"]) == ([], 60)
    assert second["note"] == (
        "Groups by device are not shown: together with those above they would tell a few cases apart."
    )
    _, second = scores({"site": site, "device": ["GE"] * 20 + ["Siemens"] * 40})
    assert by_class(second) == ["GE", "Siemens"], "the same groups tell nothing more"
    _, second = scores({"site": site, "device": ["GE"] * 10 + ["Siemens"] * 50})
    assert len(second["groups"]) == 2
    few = {"owners": np.arange(60) // 3}
    _, second = scores({"site": ["site 1"] * 24 + ["site 2"] * 36, "device": ["GE"] * 36 + ["Siemens"] * 24}, **few)
    assert second["groups"] == [], "twelve cases of four patients"


def test_class_scores_of_a_second_attribute_go_where_it_differs_by_few_of_a_class():
    values, labels, proba = with_positives(("site 1", 30, 30), ("site 2", 12, 1), ("site 2", 30, 30))
    device = ["GE"] * 73 + ["Siemens"] * 60
    groups = {"site": values, "device": device}
    first, second = subgroup_scores(proba, labels, ("a", "b"), groups, n_bootstrap=20)
    assert by_class(first) == ["site 1", "site 2"]
    assert len(second["groups"]) == 2
    assert by_class(second) == []


def test_what_is_left_of_an_attribute_is_held_against_the_groups_of_the_other():
    """The scores of what is not shown follow by subtraction."""
    three = ["A"] * 21 + ["B"] * 20 + ["C"] * 19
    one = [""] * 20 + ["D"] * 40
    for groups in ({"site": one, "device": three}, {"site": three, "device": one}):
        first, second = scores(groups)
        assert first["groups"]
        assert second["groups"] == []
    values, labels, proba = with_positives(("A", 12, 4), ("B", 12, 4), ("C", 6, 4), ("C", 7, 8), ("C", 7, 8))
    device = ["D"] * 42 + ["E"] * 15 + ["F"] * 15
    for first, second in (("site", "device"), ("device", "site")):
        groups = {first: values, second: device}
        told = {
            entry["attribute"]: by_class(entry)
            for entry in subgroup_scores(proba, labels, ("a", "b"), groups, n_bootstrap=20)
        }
        if first == "site":
            assert told == {"site": ["C"], "device": []}, "D and what is not C differ by four positive cases"
        else:
            assert told == {"site": ["D", "E", "F"], "device": []}


def test_attributes_and_groups_come_in_their_order_and_unknown_attributes_not_at_all():
    site = [f"site {2 + n % 3 * 4}" for n in range(90)]
    age = [("90+", "0-9", "10-19")[n % 3] for n in range(90)]
    found = scores({"device": [""] * 90, "age": age, "site": site})
    assert [entry["attribute"] for entry in found] == ["age", "site"]
    assert [group["value"] for group in found[0]["groups"]] == ["0-9", "10-19", "90+"]
    assert [group["value"] for group in found[1]["groups"]] == ["site 2", "site 6", "site 10"]
    assert scores({"device": [""] * 90}) == []


def test_small_groups_are_withheld_together_and_not_named():
    values = ["0-9"] * 9 + ["10-19"] * 9 + [""] * 2 + ["20-29"] * 30 + ["30-39"] * 40
    (entry,) = scores({"age": values})
    assert [(group["value"], group["n"]) for group in entry["groups"]] == [("20-29", 30), ("30-39", 40)]
    assert entry["withheld"] == 20
    assert "0-9" not in json.dumps(entry)
    assert "cases of unknown age and groups of fewer than 10 cases or 5 patients" in entry["note"]


def test_a_rest_that_is_small_is_counted_to_the_largest_group():
    """Alone it could be had by subtracting the groups from all cases: one person's answer among them."""
    values = ["female"] * 30 + ["male"] * 40 + ["other"] + [""] * 2
    (entry,) = scores({"sex": values})
    assert [(g["value"], g["n"]) for g in entry["groups"]] == [("female", 30), ("male and others too few to show", 43)]
    assert entry["withheld"] == 0
    proba, labels = predictions(73)
    assert entry["groups"][1]["auc"]["value"] == pytest.approx(roc_auc_score(labels[30:], proba[30:, 1]))
    assert "other'" not in json.dumps(entry)
    assert "Not shown by themselves" in entry["note"]


def test_with_one_large_group_nothing_is_shown():
    (entry,) = scores({"sex": ["female"] * 3 + ["male"] * 40})
    assert (entry["groups"], entry["withheld"]) == ([], 43)
    assert "male" not in entry["note"]
    (entry,) = scores({"sex": ["male"] * 40})
    assert [group["n"] for group in entry["groups"]] == [40]
    assert entry["note"] == "Fewer than two groups are large enough to be shown, so there is nothing to compare."


def test_patients_count_and_not_their_images():
    """Forty images of four patients are withheld; with others they are enough."""
    patients = [n // 10 for n in range(40)] + list(range(4, 84))
    values = ["female"] * 40 + ["male"] * 80
    for options in ({"owners": patients}, {"patients": patients}):
        (entry,) = scores({"sex": values}, **options)
        assert (entry["groups"], entry["withheld"]) == ([], 120)
    (entry,) = scores({"sex": values})
    assert [group["patients"] for group in entry["groups"]] == [40, 80]


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(0, 30)), min_size=2, max_size=120))
def test_no_count_is_small_however_groups_are_subtracted_from_all(drawn):
    values, patients = [value for value, _ in drawn], [patient for _, patient in drawn]
    for entry in scores({"device": values}, patients=patients):
        sizes = {value: (values.count(value), len({p for v, p in drawn if v == value})) for value in set(values)}
        shown = {group["value"].removesuffix(" and others too few to show") for group in entry["groups"]}
        for group in entry["groups"]:
            assert group["n"] >= LEAST_CASES
            assert group["patients"] >= LEAST_PATIENTS
        rest = len(values) - sum(group["n"] for group in entry["groups"])
        assert entry["withheld"] == rest
        if rest:
            left = {patient for value, patient in drawn if value not in shown}
            assert not shown or (rest >= LEAST_CASES and len(left) >= LEAST_PATIENTS)
        for value in shown:
            assert value
            assert sizes[value] >= (LEAST_CASES,)
            assert sizes[value][1] >= LEAST_PATIENTS


@pytest.mark.parametrize(("spread", "word"), [(1.0, "do not overlap"), (4.0, "overlap")])
def test_the_note_compares_the_groups_that_are_furthest_apart(spread, word):
    """The last group is told apart well, or hardly, as the others are."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 2
    noise = rng.normal(0, 1, 240) * np.where(np.arange(240) < 160, 4.0, spread)
    score = 1 / (1 + np.exp(-(2 * labels - 1 + noise)))
    proba = np.stack([1 - score, score], axis=1)
    values = ["60-69"] * 80 + ["70-79"] * 80 + ["80-89"] * 80
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"age": values}, n_bootstrap=200)
    aucs = {group["value"]: group["auc"]["value"] for group in entry["groups"]}
    best, worst = max(aucs, key=aucs.__getitem__), min(aucs, key=aucs.__getitem__)
    assert entry["note"] == (
        f"The largest difference in AUC is between {best} ({aucs[best]:.3f}) and {worst} ({aucs[worst]:.3f}); their "
        f"95% intervals {word}."
    )


def test_an_interval_that_is_a_point_decides_nothing():
    """Ten cases without an error are not surely better than others."""
    labels = np.arange(40) % 2
    score = np.where(np.arange(40) < 10, labels, 0.5 + 0.1 * (labels - 0.5) * np.where(np.arange(40) % 3, 1, -1))
    proba = np.stack([1 - score, score], axis=1)
    values = ["female"] * 10 + ["male"] * 30
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"sex": values}, n_bootstrap=200)
    female, male = (group["auc"] for group in entry["groups"])
    assert female["low"] == 1 > male["high"]
    assert entry["note"].endswith("; the interval of female is a point, so nothing says whether they differ.")


def test_equal_groups_are_said_to_be_equal():
    labels = np.arange(40) % 2
    proba = np.stack([1 - labels, labels], axis=1).astype(float)
    values = ["female", "female", "male", "male"] * 10
    (entry,) = subgroup_scores(proba, labels, ("a", "b"), {"sex": values}, n_bootstrap=5)
    assert entry["note"] == "All groups have the same AUC, 1.000."


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 values of sex for 4 cases"):
        subgroup_scores(*predictions(4), ("a", "b"), {"sex": ["female"] * 3})
    with pytest.raises(DataError, match="alone"):
        subgroup_scores(np.full((20, 2), 0.5), [0] * 20, ("a", "b"), {"sex": ["female"] * 20})


def image_set(labels: list[int], unit: str = "patient", groups: dict | None = None) -> ImageSet:
    """Patient 0 has three images, the others one."""
    patients = torch.tensor([0, 0, 0, 1, 2])
    units = patients if unit == "patient" else torch.arange(5)
    zeros = torch.zeros(5, 1, 2, 2)
    n = int(units.max()) + 1
    return ImageSet(zeros, torch.tensor(labels), units, n, ("a", "b"), "test", unit, None, patients, groups)


def test_a_case_has_a_value_if_all_its_images_have_it():
    groups = {"sex": ("female", "female", "female", "male", ""), "device": ("GE", "GE", "Siemens", "GE", "GE")}
    images = image_set([1, 1, 1, 0, 1], groups={**groups, "site": ("", "site 1", "site 1", "site 2", "site 1")})
    found, patients = groups_of_cases(images, cases_of(images))
    assert found == {
        "sex": ["female", "male", ""],
        "device": ["", "GE", "GE"],
        "site": ["", "site 2", "site 1"],
    }
    assert patients.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("labels", "unit"), [([1, 0, 1, 0, 1], "patient"), ([1, 1, 1, 0, 1], "image")])
def test_images_that_are_cases_keep_their_own_values_and_their_patient(labels, unit):
    images = image_set(labels, unit, {"device": ("GE", "GE", "Siemens", "GE", "")})
    found, patients = groups_of_cases(images, cases_of(images))
    assert found == {"device": ["GE", "GE", "Siemens", "GE", ""]}
    assert patients.tolist() == [0, 0, 0, 1, 2]


def test_a_split_without_groups_has_no_subgroups():
    images = image_set([1, 1, 1, 0, 1])
    assert subgroups_of([[0.5, 0.5]] * 3, images, cases_of(images)) == []
    with pytest.raises(ValueError, match="no groups"):
        groups_of_cases(images, cases_of(images))


def test_images_of_few_patients_are_withheld_where_the_image_is_the_unit():
    """What counts is the people, also where the guarantee is for images."""
    n = 60
    patients = torch.tensor([k // 10 if k < 40 else k - 36 for k in range(n)])
    groups = {"sex": ("female",) * 40 + ("male",) * 20}
    labels = torch.arange(n) % 2
    images = ImageSet(
        torch.zeros(n, 1, 2, 2), labels, torch.arange(n), n, ("a", "b"), "test", "image", None, patients, groups
    )
    (entry,) = subgroups_of(predictions(n)[0], images, cases_of(images), n_bootstrap=5)
    assert (entry["groups"], entry["withheld"]) == ([], 60)


def test_a_run_is_scored_by_subgroup(monkeypatch):
    """Of both evaluation splits, with the run's number of resamples and the predictions that all scores are of."""
    monkeypatch.setattr(scoring, "measure_symmetry", lambda *_, **__: None)
    n, model = 40, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    splits = {}
    for name in ("val", "test"):
        patients, labels = torch.arange(n), torch.arange(n) % 2
        groups = {"sex": ("female", "female", "male", "male") * 10} if name == "test" else None
        pixels = torch.randn(n, 1, 2, 2) + labels[:, None, None, None]
        splits[name] = ImageSet(pixels, labels, patients, n, ("a", "b"), name, "patient", None, patients, groups)
    evaluation = SimpleNamespace(bootstrap=7, weights="ema")
    prepared = SimpleNamespace(
        config=SimpleNamespace(evaluation=evaluation), spec=SimpleNamespace(group="C1", restriction=None)
    )
    metrics = scoring.score(model, splits, prepared, torch.device("cpu"))
    assert metrics["val"]["subgroups"] == []
    cases = cases_of(splits["test"])
    expected = subgroups_of(
        predict_cases(model, splits["test"], cases, device=torch.device("cpu")), splits["test"], cases, n_bootstrap=7
    )
    assert metrics["test"]["subgroups"] == expected
    (entry,) = expected
    right = sum(group["accuracy"]["value"] * group["n"] for group in entry["groups"])
    assert right == pytest.approx(metrics["test"]["accuracy"]["value"] * n)
