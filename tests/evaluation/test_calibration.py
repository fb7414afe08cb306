from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from predictions import BINARY, binormal, multiclass

from dpeq.evaluation.bootstrap import resamples
from dpeq.evaluation.calibration import BINS, LEAST_CASES
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
    """Bins of 1/15: 0.021 and 0.04 in the first (no positive of 10), 0.9 in the 14th (8 of 12)."""
    labels = [0] * 10 + [1] * 8 + [0] * 4
    out = evaluate_predictions(two([0.021, 0.04] * 5 + [0.9] * 12), labels, BINARY, n_bootstrap=100)
    assert out["ece"]["value"] == pytest.approx((10 * 0.0305 + 12 * (0.9 - 2 / 3)) / 22)
    assert out["calibration"]["of"] == "probability of pneumonia"
    first, last = out["calibration"]["bins"]
    assert (first["low"], first["high"], first["n"]) == (0.0, 1 / 15, 10)
    assert first["predicted"] == 0.03
    assert first["observed"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (last["low"], last["high"], last["n"]) == (pytest.approx(13 / 15), pytest.approx(14 / 15), 12)
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
    bins = out["calibration"]["bins"]
    for one in bins:
        assert one["n"] >= LEAST_CASES or len(bins) == 1, "few cases would point at somebody"
        assert one["predicted"] == round(one["predicted"], 2)
        inside = (score <= one["high"]) & ((score > one["low"]) | (one["low"] == 0))
        assert one["n"] == inside.sum()
        assert one["predicted"] == pytest.approx(score[inside].mean(), abs=0.005 + 1e-9)
        assert one["observed"]["value"] == pytest.approx(labels[inside].mean())
    assert all(a["high"] <= b["low"] for a, b in pairwise(bins))


def test_a_bin_of_few_cases_is_joined_with_its_smaller_neighbour():
    """A single case at 0.5 would show its exact prediction; bins that hold enough stay as they are."""
    score = np.repeat([0.02, 0.4, 0.5, 0.6, 0.98], [20, 30, 1, 12, 20])
    bins = evaluate_predictions(two(score), np.arange(83) % 2, BINARY, n_bootstrap=10)["calibration"]["bins"]
    assert [one["n"] for one in bins] == [20, 30, 13, 20]
    assert (bins[2]["low"], bins[2]["high"]) == (7 / 15, 9 / 15)
    score[50:63] = 0.5
    bins = evaluate_predictions(two(score), np.arange(83) % 2, BINARY, n_bootstrap=10)["calibration"]["bins"]
    assert [(one["n"], round(one["high"] - one["low"], 6)) for one in bins] == [
        (n, round(1 / BINS, 6)) for n in (20, 30, 13, 20)
    ]


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
    score, labels = np.repeat([0.3, 0.6, 0.8], [12, 12, 36]), np.arange(60) % 3 % 2
    score = score + np.random.default_rng(5).uniform(-0.02, 0.02, 60)  # within the bins
    owners = np.repeat(np.arange(10), 6)  # two patients have a bin to themselves, and may both be left out
    proba = two(score)
    out = evaluate_predictions(proba, labels, BINARY, owners=owners, n_bootstrap=120, seed=3)
    bins = out["calibration"]["bins"]
    eces: list[float] = []
    frequencies: list[list[float]] = [[] for _ in bins]
    for row in np.concatenate(list(resamples(labels, owners, 120, 3))):
        chosen = np.repeat(np.arange(60), row.astype(int))
        score, truth = proba[chosen, 1], labels[chosen]
        eces.append(by_hand(score, truth))
        for one, drawn in zip(bins, frequencies, strict=True):
            inside = (one["low"] < score) & (score <= one["high"])
            if inside.any():
                drawn.append(truth[inside].mean())
    low, high = np.quantile(eces, [0.025, 0.975])
    assert out["ece"]["high"] == pytest.approx(high)
    assert out["ece"]["low"] == pytest.approx(min(low, out["ece"]["value"]))
    assert any(len(drawn) < 120 for drawn in frequencies)
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
    proba = np.repeat([[0.0, 1.0005], [1.0, 0.0], [0.4, 0.6]], 10, axis=0)
    bins = evaluate_predictions(proba, np.arange(30) % 2, BINARY, n_bootstrap=20)["calibration"]["bins"]
    assert (bins[-1]["high"], bins[-1]["predicted"]) == (1.0, 1.0)
