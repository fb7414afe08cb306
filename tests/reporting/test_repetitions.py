"""Means and differences held against scipy's own intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpeq.reporting.repetitions import difference_of_means, mean_of

scores = st.lists(st.floats(0.3, 0.7).map(lambda x: round(x, 3)), min_size=2, max_size=6)


@given(scores)
def test_the_mean_has_students_interval(values):
    if len(set(values)) == 1:
        assert (mean_of(values)["low"], mean_of(values)["high"]) == (None, None)
        return
    low, high = stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
    found = mean_of(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["low"] == pytest.approx(max(0, low))
    assert found["high"] == pytest.approx(min(1, high))


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")  # scipy's, where one side does not vary
@given(scores, scores)
def test_the_difference_has_welchs_interval(a, b):
    found = difference_of_means(a, b)
    assert found["mean"] == pytest.approx(np.mean(a) - np.mean(b))
    if len(set(a)) == len(set(b)) == 1:
        assert found["low"] is None
        return
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found["low"] == pytest.approx(max(-1, low))
    assert found["high"] == pytest.approx(min(1, high))


def test_a_single_run_has_no_interval_and_none_is_wider_than_scores_are():
    assert mean_of([0.9]) == {"mean": 0.9, "low": None, "high": None}
    assert difference_of_means([0.9], [0.8, 0.7])["low"] is None
    assert mean_of([0.5, 1.0])["high"] == 1.0
    assert mean_of([0.5, 0.0])["low"] == 0.0
    assert difference_of_means([1.0, 0.0], [0.0, 0.9])["low"] == -1.0
