import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from predictions import BINARY, binormal, coarse, multiclass
from sklearn.metrics import confusion_matrix, roc_curve

from dpeq.errors import DataError
from dpeq.evaluation.bootstrap import resamples
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.evaluation.operating import MOST_CLASSES, choose_thresholds

RATES = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")


def counted(called: np.ndarray, positive: np.ndarray) -> list[float]:
    (tn, fp), (fn, tp) = confusion_matrix(positive, called, labels=[False, True])
    return [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)]


def down(score: np.ndarray) -> np.ndarray:
    """To three digits; what is a hair below one of them is that one."""
    return np.floor(np.round(score * 1000, 6)) / 1000


def values(point: dict) -> list[float]:
    return [point[rate]["value"] for rate in RATES]


def test_thresholds_come_from_validation_and_the_rates_from_the_test_set():
    val, val_labels = binormal(200, 1.2, seed=0)
    test, test_labels = binormal(300, 1.2, seed=1, share=0.3)
    thresholds = choose_thresholds(val, val_labels, BINARY)
    out = evaluate_predictions(test, test_labels, BINARY, thresholds=thresholds, n_bootstrap=20)["operating_points"]
    assert [point["name"] for point in out] == [
        "most probable class",
        "Youden's J",
        "sensitivity at least 0.95",
        "specificity at least 0.95",
    ]
    assert {point["class"] for point in out} == {"pneumonia"}
    assert [point["threshold"] for point in out] == [0.5, *(t.value for t in thresholds)]
    for point in out:
        assert values(point) == pytest.approx(counted(test[:, 1] >= point["threshold"], test_labels == 1))
        assert point["name"] == "most probable class" or point["rule"].endswith("on the validation set")
    fpr, tpr, cuts = roc_curve(val_labels, down(val[:, 1]), drop_intermediate=False)
    assert out[1]["threshold"] == cuts[np.argmax(tpr - fpr)]
    assert out[2]["threshold"] == max(cuts[tpr >= 0.95])
    assert out[3]["threshold"] == min(cuts[fpr <= 0.05 + 1e-9])
    own = evaluate_predictions(test, test_labels, BINARY, n_bootstrap=20)["operating_points"]
    assert own[1]["threshold"] != out[1]["threshold"]
    assert all(point["rule"].endswith("on this very set, which flatters") for point in own[1:])


@given(seed=st.integers(0, 1000), n=st.integers(6, 40), steps=st.integers(1, 12))
def test_each_threshold_is_the_best_of_all_and_ties_pass_it_together(seed, n, steps):
    proba, labels = binormal(n, 0.8, seed)
    proba = coarse(proba, steps)
    score, positive = proba[:, 1], labels == 1
    rates = {t: (np.mean(score[positive] >= t), np.mean(score[~positive] < t)) for t in np.unique(down(score))}
    found = {t.name: t.value for t in choose_thresholds(proba, labels, BINARY)}
    best = max(round(a + b, 9) for a, b in rates.values())
    assert found["Youden's J"] == max(t for t, (a, b) in rates.items() if round(a + b, 9) == best)
    assert found["sensitivity at least 0.95"] == max(t for t, (a, _) in rates.items() if a >= 0.95)
    specific = [t for t, (_, b) in rates.items() if b >= 0.95]
    assert found.get("specificity at least 0.95") == (min(specific) if specific else None)


def test_no_threshold_is_the_probability_of_a_case():
    """With the weights and an image at hand, such a number tells whether the image is in the validation set."""
    val, labels = binormal(200, 1.2, seed=0)
    for proba, names in ((val, BINARY), (multiclass(90, 3, seed=0)[0], tuple("abc"))):
        truth = labels if len(names) == 2 else multiclass(90, 3, seed=0)[1]
        found = choose_thresholds(proba, truth, names)
        assert len(found) == 3
        for threshold in found:
            assert threshold.value == round(threshold.value, 3)
            assert threshold.value not in proba[:, threshold.positive]
    points = evaluate_predictions(val, labels, BINARY, n_bootstrap=20)["operating_points"]
    assert points[2]["sensitivity"]["value"] >= 0.95, "the rates are those of the rounded threshold"
    assert points[3]["specificity"]["value"] >= 0.95


def test_exactly_nineteen_of_twenty_are_95_per_cent():
    score = np.concatenate([np.linspace(0.5, 0.9, 20), np.linspace(0.1, 0.55, 20)])
    labels = np.repeat([1, 0], 20)
    found = choose_thresholds(np.stack([1 - score, score], 1), labels, BINARY)
    sensitive, specific = found[1].value, found[2].value
    assert np.sum(score[:20] >= sensitive) == 19
    assert np.sum(score[20:] < specific) == 19


def test_a_tie_is_answered_by_the_first_class():
    proba = np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    point = evaluate_predictions(proba, [1, 1, 0], BINARY, n_bootstrap=20)["operating_points"][0]
    assert point["sensitivity"]["value"] == 0.5
    assert "a tie goes to normal" in point["rule"]


def test_a_rate_of_nothing_is_none_and_a_rule_that_calls_nobody_positive_is_left_out():
    proba = np.tile([0.6, 0.4], (20, 1))
    points = evaluate_predictions(proba, np.arange(20) % 2, BINARY, n_bootstrap=20)["operating_points"]
    assert points[0]["positive_predictive_value"] is None
    assert points[0]["negative_predictive_value"]["value"] == 0.5
    assert [p["name"] for p in points] == ["most probable class", "Youden's J", "sensitivity at least 0.95"]


def test_more_classes_have_one_threshold_each_and_very_many_have_none():
    val, val_labels = multiclass(90, 3, seed=0)
    test, test_labels = multiclass(60, 3, seed=1)
    kept = val_labels != 1
    thresholds = choose_thresholds(val[kept], val_labels[kept], tuple("abc"))
    assert [t.positive for t in thresholds] == [0, 2], "a class without a case in validation has no threshold"
    points = evaluate_predictions(test, test_labels, tuple("abc"), thresholds=thresholds, n_bootstrap=20)
    assert [p["class"] for p in points["operating_points"]] == ["a", "c"]
    for c, point in zip((0, 2), points["operating_points"], strict=True):
        assert point["name"] == "Youden's J"
        assert values(point) == pytest.approx(counted(test[:, c] >= point["threshold"], test_labels == c))
    proba, labels = multiclass(44, MOST_CLASSES + 1, seed=0)
    many = evaluate_predictions(proba, labels, [str(c) for c in range(MOST_CLASSES + 1)], n_bootstrap=5)
    assert many["operating_points"] == []
    with pytest.raises(DataError, match="softmax"):
        choose_thresholds([[2.0, 3.0]], [0], BINARY)


def test_a_class_that_the_test_set_lacks_has_no_sensitivity():
    val, val_labels = multiclass(60, 3, seed=0)
    test, test_labels = multiclass(60, 3, seed=1)
    kept = test_labels != 2
    thresholds = choose_thresholds(val, val_labels, tuple("abc"))
    out = evaluate_predictions(test[kept], test_labels[kept], tuple("abc"), thresholds=thresholds, n_bootstrap=20)
    assert out["operating_points"][2]["sensitivity"] is None
    assert out["operating_points"][2]["specificity"] is not None


def test_intervals_are_those_of_a_loop_over_resampled_cases_and_leave_out_what_is_undefined():
    proba, labels = binormal(24, 2.0, seed=2)
    out = evaluate_predictions(proba, labels, BINARY, n_bootstrap=200, seed=1)["operating_points"]
    for point in out:
        called = proba[:, 1] >= point["threshold"]
        drawn: list[list[float]] = [[], [], [], []]
        for row in np.concatenate(list(resamples(labels, None, 200, 1))):
            chosen = np.repeat(np.arange(24), row.astype(int))
            with np.errstate(invalid="ignore"):
                for rate, value in zip(drawn, counted(called[chosen], labels[chosen] == 1), strict=True):
                    rate.append(value)
        for rate, each in zip(RATES, drawn, strict=True):
            bounds = np.nanquantile(each, [0.025, 0.975])
            assert [point[rate]["low"], point[rate]["high"]] == pytest.approx(bounds), (point["name"], rate)
