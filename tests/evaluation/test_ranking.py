"""Average precision and curves, held against scikit-learn on every resample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from predictions import BINARY, binormal, coarse, multiclass
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_score, roc_auc_score

from dpeq.evaluation.bootstrap import resamples
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.evaluation.ranking import CURVE_POINTS, Ranking


@given(
    scores=st.lists(st.integers(0, 6), min_size=4, max_size=30),
    seed=st.integers(0, 1000),
)
def test_areas_equal_scikit_learn_for_any_weights_and_ties(scores, seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(len(scores)) < 0.4
    positive[:2] = True, False
    weights = rng.integers(0, 4, (5, len(scores))).astype(float)
    weights[:, :2] += 1  # both classes are in every resample
    values = np.asarray(scores) / 6
    auc, precision = Ranking(values, positive).areas(weights)
    for row, one_auc, one_precision in zip(weights, auc, precision, strict=True):
        assert one_auc == pytest.approx(roc_auc_score(positive, values, sample_weight=row), abs=1e-12)
        assert one_precision == pytest.approx(average_precision_score(positive, values, sample_weight=row), abs=1e-12)


def test_average_precision_is_of_class_1_or_the_mean_over_classes():
    proba, labels = binormal(301, 1.1, seed=3, share=0.3)
    out = evaluate_predictions(proba, labels, BINARY, n_bootstrap=20)
    assert out["average_precision"]["value"] == pytest.approx(average_precision_score(labels, proba[:, 1]))
    assert out["majority_average_precision"] == pytest.approx(labels.mean())
    constant = evaluate_predictions(np.full((301, 2), 0.5), labels, BINARY, n_bootstrap=20)
    assert constant["average_precision"]["value"] == pytest.approx(out["majority_average_precision"])

    proba, labels = multiclass(200, 4, seed=1)
    kept = labels != 3
    out = evaluate_predictions(proba[kept], labels[kept], tuple("abcd"), n_bootstrap=20)
    each = [average_precision_score(labels[kept] == c, proba[kept, c]) for c in range(3)]
    assert out["average_precision"]["value"] == pytest.approx(np.mean(each))
    assert out["majority_average_precision"] == pytest.approx(1 / 3)
    assert [row["average_precision"]["value"] for row in out["by_class"]] == pytest.approx(each)


def test_intervals_are_those_of_a_loop_over_resampled_cases():
    """A bootstrap as a textbook writes it: cases repeated, scored one resample at a time, from the same coins."""
    proba, labels = binormal(60, 0.8, seed=5, share=0.4)
    proba = coarse(proba, 12)
    out = evaluate_predictions(proba, labels, BINARY, n_bootstrap=150, seed=9)
    areas, precisions = [], []
    for row in np.concatenate(list(resamples(labels, None, 150, 9))):
        chosen = np.repeat(np.arange(60), row.astype(int))
        areas.append(average_precision_score(labels[chosen], proba[chosen, 1]))
        precisions.append(precision_score(labels[chosen], proba[chosen].argmax(1)))
    for interval, drawn in ((out["average_precision"], areas), (out["by_class"][1]["precision"], precisions)):
        assert [interval["low"], interval["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_by_class_is_one_class_against_all_others():
    proba, labels = multiclass(150, 3, seed=4)
    out = evaluate_predictions(proba, labels, tuple("abc"), n_bootstrap=20)
    answer = proba.argmax(1)
    assert [(row["class"], row["n"]) for row in out["by_class"]] == [("a", 50), ("b", 50), ("c", 50)]
    for c, row in enumerate(out["by_class"]):
        assert row["auc"]["value"] == pytest.approx(roc_auc_score(labels == c, proba[:, c]))
        assert row["sensitivity"]["value"] == np.mean(answer[labels == c] == c)
        assert row["specificity"]["value"] == np.mean(answer[labels != c] != c)
        assert row["precision"]["value"] == np.mean(labels[answer == c] == c)
    assert [row["sensitivity"]["low"] for row in out["by_class"]] == [row["low"] for row in out["recall"]]


def test_the_precision_of_a_class_that_is_never_answered_is_none():
    labels = np.arange(40) % 2
    out = evaluate_predictions(np.tile([0.7, 0.3], (40, 1)), labels, BINARY, n_bootstrap=20)
    assert out["by_class"][1]["precision"] is None
    assert out["by_class"][0]["precision"]["value"] == 0.5


def test_precision_by_recall_is_thin_rises_in_recall_and_lies_on_the_full_curve():
    proba, labels = binormal(4000, 0.8, seed=8)
    curve = evaluate_predictions(proba, labels, BINARY, n_bootstrap=5)["precision_recall"]
    precision, recall, _ = precision_recall_curve(labels, proba[:, 1])
    points = list(zip(curve["recall"], curve["precision"], strict=True))
    assert 100 < len(points) <= CURVE_POINTS
    assert set(points) <= set(zip(recall.tolist(), precision.tolist(), strict=True))
    assert points[0] == (0.0, 1.0)
    assert points[-1] == (1.0, pytest.approx(0.5))
    assert curve["recall"] == sorted(curve["recall"])
    many = evaluate_predictions(*multiclass(60, 3, 0), tuple("abc"), n_bootstrap=5)["precision_recall"]
    assert [one["class"] for one in many] == ["a", "b", "c"]
