"""Solving for one constant: what is found meets its target by another's account, and one more would not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeq.errors import BudgetError, ConfigError
from dpeq.privacy import accounting, solving
from dpeq.privacy.gdp import gaussian_epsilon, gaussian_mu
from dpeq.privacy.solving import edge, solve, trade_off

SETTING = {"delta": 1e-5, "public_units": 2000}
FULL = {"epsilon": 3.0, "noise_multiplier": 1.5, "steps": 100, "expected_batch_size": 200}


@pytest.fixture(scope="module", autouse=True)
def processes():
    with accounting.session("pld"):
        yield


def spent(batch, sigma, steps, delta=1e-5, units=2000):
    """By dp-accounting on a mesh of its own, an independent path to the number."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    single = from_gaussian_mechanism(sigma, sampling_prob=batch / units, value_discretization_interval=1e-3)
    return single.self_compose(steps).get_epsilon_for_delta(delta)


def left_out(name):
    return {**SETTING, **{key: value for key, value in FULL.items() if key != name}}


def test_noise():
    found = solve(**left_out("noise_multiplier"))
    assert found.unknown == "noise_multiplier"
    assert 3.0 * 0.998 <= found.epsilon <= 3.0
    assert spent(200, found.noise_multiplier, 100) <= 3.0 < spent(200, found.noise_multiplier * 0.998, 100)


def test_steps():
    found = solve(**left_out("steps"))
    assert found.unknown == "steps"
    assert found.epsilon <= 3.0
    assert spent(200, 1.5, found.steps) <= 3.0
    assert accounting.epsilon_pld(0.1, 1.5, found.steps + 1, 1e-5) > 3.0
    assert spent(200, 1.5, found.steps + 1) > 3.0 * 0.9995


def test_batch():
    found = solve(**left_out("expected_batch_size"))
    assert found.unknown == "expected_batch_size"
    assert found.sample_rate == found.expected_batch_size / 2000
    assert spent(found.expected_batch_size, 1.5, 100) <= 3.0
    assert accounting.epsilon_pld((found.expected_batch_size + 1) / 2000, 1.5, 100, 1e-5) > 3.0


def test_epsilon():
    found = solve(**left_out("epsilon"))
    assert found.unknown == "epsilon"
    assert found.epsilon == accounting.epsilon_pld(0.1, 1.5, 100, 1e-5)
    assert found.epsilon == pytest.approx(spent(200, 1.5, 100), rel=1e-3)


def test_the_four_answers_agree():
    """From a noise multiplier back to the steps and the batch it was found for."""
    sigma = solve(**left_out("noise_multiplier")).noise_multiplier
    setting = {**SETTING, **FULL, "noise_multiplier": sigma}
    assert solve(**{**setting, "steps": None}).steps == 100
    assert solve(**{**setting, "expected_batch_size": None}).expected_batch_size == 200
    assert 3.0 * 0.998 <= solve(**{**setting, "epsilon": None}).epsilon <= 3.0


def test_a_rate_in_place_of_a_batch():
    found = solve(delta=1e-5, epsilon=1.0, sample_rate=1.0, steps=1)
    assert found.expected_batch_size is None
    # Without subsampling the least noise is that of the analytic Gaussian mechanism.
    assert 1 / gaussian_mu(1.0, 1e-5) <= found.noise_multiplier <= 1.002 / gaussian_mu(1.0, 1e-5)
    steps = solve(delta=1e-5, epsilon=2.0, sample_rate=1.0, noise_multiplier=20.0).steps
    assert gaussian_epsilon(math.sqrt(steps) / 20, 1e-5) <= 2.0 < gaussian_epsilon(math.sqrt(steps * 1.01) / 20, 1e-5)


def test_the_whole_data_set_may_be_the_batch():
    assert solve(**{**left_out("expected_batch_size"), "epsilon": 300.0}).expected_batch_size == 2000


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"epsilon": None, "steps": None}, "exactly one; left out: epsilon and steps"),
        ({}, "left out: none"),
        ({"steps": None, "epsilon": 0.0}, "Epsilon"),
        ({"steps": None, "epsilon": math.inf}, "Epsilon"),
        ({"steps": None, "noise_multiplier": 0.0}, "noise multiplier"),
        ({"epsilon": None, "steps": 2.5}, "steps"),
        ({"epsilon": None, "steps": 0}, "steps"),
        ({"epsilon": None, "expected_batch_size": 2001}, "expected_batch_size"),
        ({"epsilon": None, "public_units": None}, "public_units"),
        ({"epsilon": None, "sample_rate": 1.5}, "sampling rate"),
        ({"epsilon": None, "delta": 0.0}, "Delta"),
    ],
)
def test_impossible_questions_are_refused_before_anything_is_computed(changes, word, monkeypatch):
    monkeypatch.setattr(accounting, "upper_bound", lambda *args: pytest.fail("asked an accountant"))
    with pytest.raises(ConfigError, match=word):
        solve(**{**SETTING, **FULL, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("steps", {"epsilon": 0.01, "noise_multiplier": 0.5}, "One step alone"),
        ("steps", {"epsilon": 900.0, "noise_multiplier": 900.0, "sample_rate": 1e-4}, "1,000,000 steps fit"),
        ("expected_batch_size", {"epsilon": 1e-4, "noise_multiplier": 0.5, "delta": 1e-9}, "expected batch of 1"),
    ],
)
def test_what_cannot_be_met_is_said(name, changes, word, monkeypatch):
    if "fit" in word:  # a million steps take their time; the search alone is meant
        monkeypatch.setattr(accounting, "upper_bound", lambda *args: (1.0, "pld", None))
    with pytest.raises(BudgetError, match=word):
        solve(**{**left_out(name), **changes})


def test_no_noise_is_enough(monkeypatch):
    monkeypatch.setattr(accounting, "upper_bound", lambda *args: (5.0, "pld", None))
    with pytest.raises(BudgetError, match="No noise multiplier"):
        solve(**left_out("noise_multiplier"))


def test_an_answer_that_the_accountant_takes_back_is_refused(monkeypatch):
    monkeypatch.setattr(solving, "find_sigma", lambda *args: 0.9)
    with pytest.raises(BudgetError, match="noise_multiplier that was found costs"):
        solve(**left_out("noise_multiplier"))


def test_a_point_that_nobody_can_bound_meets_no_target(monkeypatch):
    def nobody(*args):
        raise accounting.AccountingError("silence")

    monkeypatch.setattr(accounting, "upper_bound", nobody)
    assert solving._cost(0.1, 1.0, 10, 1e-5) == math.inf


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    answer=st.integers(0, 5000),  # 0: nothing meets the target, or everything does
    guess=st.integers(-10, 10_000),
    exponent=st.floats(0.2, 4.0),
    power=st.floats(0.3, 3.0),
    rising=st.booleans(),
)
def test_the_edge_of_any_monotone_cost_is_found_exactly(answer, guess, exponent, power, rising):
    """Whatever the guess and the supposed power law are worth."""
    low, high, calls = 1, 5000, []

    def cost(n):
        calls.append(n)
        assert low <= n <= high
        return (n / 100) ** exponent if rising else (100 / n) ** exponent

    target = cost(answer) if answer else (cost(1) / 2 if rising else cost(1) * 2)
    found = edge(cost, target, guess, low, high, power=power if rising else -power)
    if answer >= 1:
        assert found == answer
    else:
        assert found == (None if rising else 1)
    assert len(calls) < 60


def test_a_wrinkled_cost_still_gives_an_answer_that_meets_the_target():
    def cost(n):
        return n + 30 * math.sin(n)  # not monotone

    found = edge(cost, 1000.0, 10, 1, 100_000, power=1.0)
    assert cost(found) <= 1000.0 < cost(found + 1)


def test_slack_ends_the_search_early():
    calls = []
    found = edge(lambda n: calls.append(n) or n / 7, 500.0, 100, 1, 10**6, power=1.0, slack=0.01)
    assert 495 <= found / 7 <= 500
    assert len(calls) <= 3


def test_trade_off_at_one_noise():
    rows = trade_off(**SETTING, expected_batch_sizes=[50, 200], steps=[20, 80], noise_multiplier=1.5)
    assert [(r.expected_batch_size, r.steps) for r in rows] == [(50, 20), (50, 80), (200, 20), (200, 80)]
    for row in rows:
        exact = spent(row.expected_batch_size, 1.5, row.steps)
        assert exact <= row.epsilon <= exact * 1.01
        assert row.noise_to_batch == 1.5 / row.expected_batch_size
    assert rows[0].epsilon < rows[1].epsilon < rows[3].epsilon


def test_trade_off_at_one_epsilon():
    rows = trade_off(**SETTING, expected_batch_sizes=[200, 50], steps=[20, 80], epsilon=3.0)
    for row in rows:
        assert 3.0 * 0.99 <= row.epsilon <= 3.0
        assert spent(row.expected_batch_size, row.noise_multiplier, row.steps) <= 3.0
    # A larger batch needs more noise, but less beside its signal.
    assert rows[0].noise_multiplier < rows[2].noise_multiplier
    assert rows[0].noise_to_batch > rows[2].noise_to_batch


@pytest.mark.parametrize(
    "changes", [{}, {"noise_multiplier": 1.0, "epsilon": 1.0}, {"epsilon": 1.0, "steps": []}, {"epsilon": -1.0}]
)
def test_trade_off_refuses(changes):
    with pytest.raises(ConfigError):
        trade_off(**{**SETTING, "expected_batch_sizes": [50], "steps": [20], **changes})
