from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions import BINARY, binormal, multiclass
from scipy.stats import norm
from sklearn.metrics import accuracy_score, auc, balanced_accuracy_score, brier_score_loss, roc_auc_score, roc_curve

from dpeq.errors import DataError
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.evaluation.ranking import CURVE_POINTS


def test_binary_values_agree_with_scikit_learn():
    proba, labels = binormal(301, 1.1, seed=3, share=0.3)
    out = evaluate_predictions(proba, labels, BINARY, n_bootstrap=50)
    predicted = proba.argmax(1)
    assert out["auc"]["value"] == pytest.approx(roc_auc_score(labels, proba[:, 1]), abs=1e-12)
    assert out["accuracy"]["value"] == pytest.approx(accuracy_score(labels, predicted))
    assert out["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert out["brier"]["value"] == pytest.approx(brier_score_loss(labels, proba[:, 1]))
    assert out["majority_accuracy"] == pytest.approx(np.bincount(labels).max() / 301)
    assert np.sum(out["confusion"]) == out["n"] == 301
    sensitivity = out["recall"][1]["value"]
    assert sensitivity == pytest.approx(out["confusion"][1][1] / sum(out["confusion"][1]))
    assert json.loads(json.dumps(out)) == out


def test_multiclass_auc_is_the_plain_mean_of_one_versus_rest():
    proba, labels = multiclass(240, 4, seed=1)
    out = evaluate_predictions(proba, labels, ("a", "b", "c", "d"), n_bootstrap=50)
    assert out["auc"]["value"] == pytest.approx(roc_auc_score(labels, proba, multi_class="ovr", average="macro"))
    expected = np.mean(((proba - np.eye(4)[labels]) ** 2).sum(1))
    assert out["brier"]["value"] == pytest.approx(expected)
    assert [curve["class"] for curve in out["roc"]] == ["a", "b", "c", "d"]
    assert out["absent_classes"] == []


def test_a_class_without_cases_is_left_out_and_named():
    proba, labels = multiclass(120, 3, seed=2)
    kept = labels != 2
    out = evaluate_predictions(proba[kept], labels[kept], ("a", "b", "c"), n_bootstrap=20)
    assert out["absent_classes"] == ["c"]
    each = [roc_auc_score(labels[kept] == c, proba[kept, c]) for c in (0, 1)]
    assert out["auc"]["value"] == pytest.approx(np.mean(each))
    assert [row["class"] for row in out["recall"]] == ["a", "b"]


def test_bootstrap_auc_equals_scikit_learn_on_every_resample():
    """The vectorised rank statistic, ties included, against weights given to scikit-learn."""
    from dpeq.evaluation.bootstrap import resamples
    from dpeq.evaluation.ranking import Ranking

    proba, labels = binormal(80, 0.7, seed=5, share=0.25)
    scores = np.round(proba[:, 1], 1)  # many ties
    for weights in resamples(labels, None, 25, seed=0):
        assert np.all(weights[:, labels == 1].sum(1) == 20)
        fast = Ranking(scores, labels == 1).areas(weights)[0]
        slow = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_interval_covers_the_known_auc_about_95_times_in_100():
    truth = norm.cdf(1.0 / np.sqrt(2))
    inside = 0
    for seed in range(200):
        proba, labels = binormal(120, 1.0, seed=seed)
        interval = evaluate_predictions(proba, labels, BINARY, n_bootstrap=200, seed=seed)["auc"]
        inside += interval["low"] <= truth <= interval["high"]
    assert 178 <= inside <= 199  # 95 % +- 3.3 standard errors, and percentile intervals run a little short


def test_interval_width_matches_the_binomial_standard_error():
    proba, labels = binormal(1000, 1.0, seed=0)
    accuracy = evaluate_predictions(proba, labels, BINARY, n_bootstrap=2000)["accuracy"]
    expected = 2 * 1.96 * np.sqrt(accuracy["value"] * (1 - accuracy["value"]) / 1000)
    assert accuracy["high"] - accuracy["low"] == pytest.approx(expected, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 4), n=st.integers(8, 40))
def test_order_of_cases_does_not_matter_and_the_point_lies_in_its_interval(seed, k, n):
    proba, labels = multiclass(n, k, seed)
    names = tuple("abcd"[:k])
    shuffled = np.random.default_rng(seed).permutation(n)
    first = evaluate_predictions(proba, labels, names, n_bootstrap=30)
    second = evaluate_predictions(proba[shuffled], labels[shuffled], names, n_bootstrap=30)
    for key in ("auc", "accuracy", "balanced_accuracy", "brier"):
        assert first[key]["value"] == pytest.approx(second[key]["value"], abs=1e-12)
        assert first[key]["low"] <= first[key]["value"] <= first[key]["high"]
    assert first["confusion"] == second["confusion"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_swapping_the_two_classes_keeps_auc_accuracy_and_brier(seed):
    proba, labels = binormal(40, 0.8, seed)
    here = evaluate_predictions(proba, labels, BINARY, n_bootstrap=10)
    there = evaluate_predictions(proba[:, ::-1], 1 - labels, BINARY[::-1], n_bootstrap=10)
    for key in ("auc", "accuracy", "balanced_accuracy", "brier"):
        assert here[key]["value"] == pytest.approx(there[key]["value"])
    assert np.array_equal(np.array(here["confusion"])[::-1, ::-1], there["confusion"])


def test_same_seed_same_numbers_and_another_seed_other_intervals():
    proba, labels = binormal(100, 1.0, seed=1)
    one, two, other = (evaluate_predictions(proba, labels, BINARY, n_bootstrap=100, seed=s) for s in (4, 4, 5))
    assert one == two
    assert one["auc"]["low"] != other["auc"]["low"]
    assert one["auc"]["value"] == other["auc"]["value"]


def test_roc_is_thin_keeps_its_ends_and_lies_on_the_full_curve():
    proba, labels = binormal(5000, 0.8, seed=8)
    roc = evaluate_predictions(proba, labels, BINARY, n_bootstrap=5)["roc"]
    full = set(zip(*(v.tolist() for v in roc_curve(labels, proba[:, 1])[:2]), strict=True))
    points = list(zip(roc["fpr"], roc["tpr"], strict=True))
    assert 100 < len(points) <= CURVE_POINTS
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)
    assert set(points) <= full
    assert auc(roc["fpr"], roc["tpr"]) == pytest.approx(roc_auc_score(labels, proba[:, 1]), abs=2e-3)


def test_blocks_of_resamples_do_not_change_the_result(monkeypatch):
    proba, labels = binormal(60, 1.0, seed=1)
    expected = evaluate_predictions(proba, labels, BINARY, n_bootstrap=4000)["auc"]
    monkeypatch.setattr("dpeq.evaluation.bootstrap._CELLS", 60 * 700)
    blocked = evaluate_predictions(proba, labels, BINARY, n_bootstrap=4000)["auc"]
    assert blocked["low"] == pytest.approx(expected["low"], abs=0.01)
    assert blocked["high"] == pytest.approx(expected["high"], abs=0.01)


@pytest.mark.parametrize("n", [49, 60, 120])
def test_one_answer_for_all_cases_keeps_every_score_in_its_range(n):
    """Rounding in the resamples once gave a recall of 1 + 4e-16, which no schema accepts."""
    labels = np.arange(n) % 2
    scores = evaluate_predictions(np.tile([0.3, 0.7], (n, 1)), labels, ("a", "b"), n_bootstrap=300)
    intervals = [scores[key] for key in ("auc", "accuracy", "balanced_accuracy", "brier")] + list(scores["recall"])
    for interval in intervals:
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1, interval


def test_a_thousand_resamples_of_a_medmnist_sized_test_set_are_quick():
    proba, labels = multiclass(624, 6, seed=0)
    start = time.process_time()
    evaluate_predictions(proba, labels, tuple("abcdef"), n_bootstrap=1000)
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    ("proba", "labels", "message"),
    [
        (np.zeros((0, 2)), [], "empty"),
        ([[0.5, 0.5]] * 3, [1, 1, 1], "'pneumonia' alone"),
        ([[0.5, 0.5]] * 3, [0, 1], "one row per case"),
        ([[0.2, 0.3, 0.5]] * 2, [0, 1], "one column per class"),
        ([[2.0, -1.0]] * 2, [0, 1], "softmax"),
        ([[0.9, 0.9]] * 2, [0, 1], "softmax"),
        ([[np.nan, 0.5]] * 2, [0, 1], "diverged"),
        ([[0.5, 0.5]] * 2, [0, 2], "whole numbers"),
        ([[0.5, 0.5]] * 2, [0, 0.5], "whole numbers"),
    ],
)
def test_unusable_input_is_refused_by_name(proba, labels, message):
    with pytest.raises(DataError, match=message):
        evaluate_predictions(np.asarray(proba, dtype=float), labels, BINARY)
