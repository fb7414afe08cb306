import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from predictions import BINARY, binormal, multiclass

from dpeq.evaluation.bootstrap import resamples
from dpeq.evaluation.calibration import BINS
from dpeq.evaluation.metrics import evaluate_predictions


def two(score) -> np.ndarray:
    score = np.asarray(score, dtype=float)
    return np.stack([1 - score, score], axis=1)


def by_hand(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, a bin and a case at a time; bins are ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = [i for i, p in enumerate(predicted) if (m - 1) / BINS < p <= m / BINS or (m == 1 and p == 0)]
        if inside:
            gap = np.mean([observed[i] for i in inside]) - np.mean([predicted[i] for i in inside])
            total += len(inside) / len(predicted) * abs(gap)
    return total


def test_a_set_worked_out_by_hand():
    """Bins of 1/15: 0.02 and 0.04 in the first (no positive of 2), 0.9 three times in the 14th (2 of 3)."""
    out = evaluate_predictions(two([0.02, 0.04, 0.9, 0.9, 0.9]), [0, 0, 1, 1, 0], BINARY, n_bootstrap=100)
    assert out["ece"]["value"] == pytest.approx((2 * 0.03 + 3 * (0.9 - 2 / 3)) / 5)
    assert out["calibration"]["of"] == "probability of pneumonia"
    first, last = out["calibration"]["bins"]
    assert (first["low"], first["high"], first["n"]) == (0.0, 1 / 15, 2)
    assert first["predicted"] == pytest.approx(0.03)
    assert first["observed"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (last["low"], last["high"], last["n"]) == (pytest.approx(13 / 15), pytest.approx(14 / 15), 3)
    assert last["observed"]["value"] == pytest.approx(2 / 3)


@given(seed=st.integers(0, 1000), n=st.integers(4, 60), grid=st.sampled_from([15, 30, 7, 1000]))
def test_two_classes_equal_a_loop_and_an_edge_belongs_to_the_bin_below(seed, n, grid):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, grid + 1, n) / grid
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    out = evaluate_predictions(two(score), labels, BINARY, n_bootstrap=10)
    assert out["ece"]["value"] == pytest.approx(by_hand(score, labels), abs=1e-12)
    assert 0 <= out["ece"]["low"] <= out["ece"]["value"] <= out["ece"]["high"] <= 1
    assert sum(one["n"] for one in out["calibration"]["bins"]) == n
    for one in out["calibration"]["bins"]:
        assert one["n"] > 0
        assert one["low"] - 1e-12 <= one["predicted"] <= one["high"] + 1e-12


def test_more_classes_compare_the_confidence_of_the_answer_with_how_often_it_is_right():
    proba, labels = multiclass(90, 3, seed=2)
    out = evaluate_predictions(proba, labels, tuple("abc"), n_bootstrap=50)
    assert out["calibration"]["of"] == "confidence of the answer"
    assert out["ece"]["value"] == pytest.approx(by_hand(proba.max(1), proba.argmax(1) == labels))
    order = [2, 0, 1]
    renamed = evaluate_predictions(proba[:, order], np.argsort(order)[labels], tuple("cab"), n_bootstrap=50)
    assert renamed["ece"]["value"] == pytest.approx(out["ece"]["value"])
    assert [b["n"] for b in renamed["calibration"]["bins"]] == [b["n"] for b in out["calibration"]["bins"]]


def test_naming_the_other_of_two_classes_first_keeps_the_error():
    proba, labels = binormal(80, 0.5, seed=1)
    here = evaluate_predictions(proba, labels, BINARY, n_bootstrap=10)
    there = evaluate_predictions(proba[:, ::-1], 1 - labels, BINARY[::-1], n_bootstrap=10)
    assert here["ece"]["value"] == pytest.approx(there["ece"]["value"])


def test_true_probabilities_have_a_small_error_and_overconfident_ones_a_large_one():
    rng = np.random.default_rng(0)
    score = rng.random(5000)
    labels = (rng.random(5000) < score).astype(int)
    assert evaluate_predictions(two(score), labels, BINARY, n_bootstrap=10)["ece"]["value"] < 0.03
    sure = np.where(score > 0.5, 0.999, 0.001)
    assert evaluate_predictions(two(sure), labels, BINARY, n_bootstrap=10)["ece"]["value"] > 0.2


def test_intervals_are_those_of_a_loop_over_resampled_cases():
    """A resample without a case in a bin says nothing of its frequency."""
    proba, labels = binormal(40, 0.8, seed=5)
    out = evaluate_predictions(proba, labels, BINARY, n_bootstrap=120, seed=3)
    bins = out["calibration"]["bins"]
    eces: list[float] = []
    frequencies: list[list[float]] = [[] for _ in bins]
    for row in np.concatenate(list(resamples(labels, None, 120, 3))):
        chosen = np.repeat(np.arange(40), row.astype(int))
        score, truth = proba[chosen, 1], labels[chosen]
        eces.append(by_hand(score, truth))
        for one, drawn in zip(bins, frequencies, strict=True):
            inside = (one["low"] < score) & (score <= one["high"])
            if inside.any():
                drawn.append(truth[inside].mean())
    low, high = np.quantile(eces, [0.025, 0.975])
    assert out["ece"]["high"] == pytest.approx(high)
    assert out["ece"]["low"] == pytest.approx(min(low, out["ece"]["value"]))
    assert any(len(drawn) < 120 and min(drawn) > 0 for drawn in frequencies)
    for one, drawn in zip(bins, frequencies, strict=True):
        bounds = [one["observed"]["low"], one["observed"]["high"]]
        assert bounds == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_the_bootstrap_of_the_error_lies_too_high_and_the_value_stays_inside():
    rng = np.random.default_rng(1)
    score = rng.random(200)
    labels = (rng.random(200) < score).astype(int)
    ece = evaluate_predictions(two(score), labels, BINARY, n_bootstrap=300)["ece"]
    assert ece["value"] - ece["low"] < ece["high"] - ece["value"]


def test_rows_that_add_up_to_a_little_more_than_one_stay_within_the_last_bin():
    proba = np.array([[0.0, 1.0005], [1.0, 0.0], [0.4, 0.6]])
    bins = evaluate_predictions(proba, [1, 0, 0], BINARY, n_bootstrap=20)["calibration"]["bins"]
    assert (bins[-1]["high"], bins[-1]["predicted"]) == (1.0, 1.0)
