"""A sample of the grid that ``python -m benchmarks.accounting_grid`` walks as a whole, and the walk's own eyes."""

from __future__ import annotations

import math

import pytest

from benchmarks import accounting_grid
from benchmarks.accounting_grid import AXES, Answer, Walk, sampled, single_step, subsampled_delta, walk, whole
from dpeq.privacy import accounting
from dpeq.privacy.accounting import AccountingError, Comparison
from dpeq.privacy.gdp import gaussian_epsilon


def test_a_sample_of_the_grid():
    points = sampled(16, seed=5)
    result = walk(points)
    assert result.broken == []
    assert len(result.answers) == len(set(points)) > 25
    assert any(q == 1.0 for q, _, _, _ in points)  # closed forms
    assert any(steps == 1 for _, _, steps, _ in points)
    summary = result.summary()
    assert sum(summary["answered_by"].values()) == len(result.answers)
    assert summary["gap_to_lower_bound_percent"]["median"] < 1.0


def test_the_grid_is_what_it_says():
    assert len(whole()) == math.prod(map(len, AXES)) == len(set(whole()))
    assert all(list(values) == sorted(values) for values in AXES)
    assert set(sampled(30)) <= set(whole())
    assert (min(AXES[1]), max(AXES[1]), min(AXES[0]), max(AXES[0])) == (0.4, 30.0, 1e-4, 1.0)
    assert (min(AXES[2]), max(AXES[2]), min(AXES[3]), max(AXES[3])) == (1, 100_000, 1e-8, 1e-3)


def test_the_closed_form_of_one_step():
    assert single_step(1.0, 2.0, 1e-5) == pytest.approx(gaussian_epsilon(0.5, 1e-5), rel=1e-9)
    assert single_step(1e-4, 10.0, 1e-3) == 0.0
    assert subsampled_delta(0.3, 1.0, 0.0) == pytest.approx(0.3 * math.erf(0.5 / math.sqrt(2)), rel=1e-12)


POINT = (0.1, 1.0, 100, 1e-5)
SAID = {"pld": 5.0, "prv_lower": 4.99, "prv_estimate": 5.0, "prv_upper": 5.01, "rdp": 5.5}


@pytest.mark.parametrize(
    ("point", "changes", "answer", "word"),
    [
        (POINT, {"prv_lower": 5.1}, {}, "contradict"),
        (POINT, {"rdp": 4.95, "prv_upper": 4.9, "prv_lower": 4.8}, {}, "above rdp"),
        (POINT, {"prv_lower": 5.52, "prv_upper": 5.61}, {}, "prv 5.61 above"),
        (POINT, {}, {"add": 5.5}, "direction"),
        ((1.0, 1.0, 100, 1e-5), {}, {}, "below the closed form"),
        ((1.0, 30.0, 1, 1e-5), {}, {}, "far above the closed form"),
        ((0.1, 1.0, 1, 1e-5), {}, {}, "far above the closed form"),
    ],
)
def test_the_walk_sees_what_is_broken(point, changes, answer, word):
    comparison = Comparison({**SAID, **changes}, {})
    result = Walk()
    values = {"by": "pld", "epsilon": 5.0, "add": 4.0, "remove": 5.0, "comparison": comparison, "seconds": 0.1}
    result._hold(point, Answer(**{**values, **answer}))
    assert any(word in line for line in result.broken)


@pytest.mark.parametrize("axis", range(4))
def test_the_walk_sees_what_is_not_monotone(axis):
    result = Walk()
    values = AXES[axis]
    other = (*POINT[:axis], values[values.index(POINT[axis]) + 1], *POINT[axis + 1 :])
    rises = axis in (0, 2)
    for point, epsilon in ((POINT, 5.0 if rises else 4.9), (other, 4.9 if rises else 5.0)):
        result.answers[point] = Answer("pld", epsilon, 1.0, epsilon, Comparison(dict(SAID), {}), 0.1)
    result.compare_neighbours()
    assert len(result.broken) == 1
    assert "not monotone" in result.broken[0]


def test_the_walk_says_where_nobody_answers(monkeypatch):
    def nobody(*args):
        raise AccountingError("silence")

    monkeypatch.setattr(accounting, "upper_bound", nobody)
    assert "nobody answers" in accounting_grid.walk([POINT]).broken[0]
