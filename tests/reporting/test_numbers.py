from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeq.reporting.numbers import duration, one_in, percent_up, round_down, round_up, scientific, show


@given(st.floats(0, 1e4), st.integers(0, 4))
def test_a_rounded_bound_is_still_a_bound_and_never_far_off(value, digits):
    slack = 1e-9 * max(1.0, value)  # twelve significant digits are looked at
    assert value - slack <= float(round_up(value, digits)) <= value + 10.0**-digits + slack
    assert value - 10.0**-digits - slack <= float(round_down(value, digits)) <= value + slack


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.9821, "7.99"), (8.0, "8.00"), (8.000000000000002, "8.00"), (0.0, "0.00"), (math.inf, "∞"), (1e-9, "0.01")],
)
def test_round_up(value, text):
    assert round_up(value) == text


def test_attackers_chance_is_never_shown_above_certainty():
    assert percent_up(0.83341) == "83.4\N{NO-BREAK SPACE}%"
    assert percent_up(0.99999) == "100.0\N{NO-BREAK SPACE}%"
    assert percent_up(1.2) == "100.0\N{NO-BREAK SPACE}%"


def test_scientific_and_odds():
    assert scientific(1e-4).replace("\N{NO-BREAK SPACE}", " ") == "1 × 10⁻⁴"
    assert scientific(2.121e-5).replace("\N{NO-BREAK SPACE}", " ") == "2.13 × 10⁻⁵"  # never below the truth
    assert scientific(0.25) == "0.25"
    assert one_in(1e-4) == "1 in 10,000"
    assert one_in(0.001) == "1 in 1,000"


def test_durations_and_settings():
    assert [duration(s) for s in (3.21, 41.4, 59.7, 668.4, 11100)] == [
        "3.2 s",
        "41 s",
        "1 min 0 s",
        "11 min 8 s",
        "3 h 5 min",
    ]
    assert [show(v) for v in (None, True, 38207, [1, 28, 28], 0.5, {"a": False})] == [
        "none",
        "yes",
        "38,207",
        "1, 28, 28",
        "0.5",
        "a: no",
    ]
