"""Accountants against published values, closed forms, a second library, and their own failures."""

import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from dpeq.errors import ConfigError
from dpeq.privacy import _session, accounting
from dpeq.privacy._prv_worker import choose_eps_error, fit_mu, solve_sigma
from dpeq.privacy.accounting import AccountingError

PUBLISHED = (4096 / 50000, 3.0, 2500, 1e-5)
KNOWN_FAILURE = (0.1, 0.5, 200, 1e-5)  # prv-accountant 0.2.0: "Discrete mean differs ..."


@pytest.fixture(scope="module", autouse=True)
def processes():
    """One set of child processes for the module: their start-up is paid once."""
    with accounting.session("prv", "opacus"):
        yield


def gaussian_delta(epsilon, mu):
    """Privacy profile of the Gaussian mechanism (Balle and Wang 2018, Theorem 8)."""
    return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)


def gaussian_epsilon(mu, delta):
    return brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0, 100, xtol=1e-12)


def test_published_setting():
    assert accounting.epsilon_rdp(*PUBLISHED) == pytest.approx(7.10, rel=0.01)
    bounds = accounting.epsilon_prv(*PUBLISHED)
    assert bounds.estimate == pytest.approx(6.59, rel=0.01)
    assert bounds.upper == pytest.approx(6.59, rel=0.01)
    assert accounting.epsilon_opacus_prv(*PUBLISHED) == pytest.approx(6.59, rel=0.01)


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (4.0, 9), (0.8, 1)])
def test_without_subsampling_the_closed_form_lies_within_the_bounds(sigma, steps):
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, 1e-5)
    bounds = accounting.epsilon_prv(1.0, sigma, steps, 1e-5)
    assert bounds.lower < exact < bounds.upper
    assert bounds.upper < exact * 1.005
    assert exact < accounting.epsilon_opacus_prv(1.0, sigma, steps, 1e-5) < exact * 1.005
    assert exact < accounting.epsilon_rdp(1.0, sigma, steps, 1e-5)
    assert accounting.mu_bound(1.0, sigma, steps, 1e-5) == pytest.approx(math.sqrt(steps) / sigma)


def test_a_second_library_lies_within_the_bounds():
    from dp_accounting.pld import privacy_loss_distribution

    q, sigma, steps, delta = 0.2, 2.0, 50, 1e-5
    single = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=1e-3, use_connect_dots=True
    )
    other = single.self_compose(steps).get_epsilon_for_delta(delta)
    bounds = accounting.epsilon_prv(q, sigma, steps, delta)
    assert bounds.lower <= other <= bounds.upper
    assert bounds.lower <= accounting.epsilon_pld(q, sigma, steps, delta) <= bounds.upper


@pytest.mark.parametrize(
    "setting", [(0.01, 1.0, 500, 1e-5), (0.1, 2.0, 100, 1e-6), (0.5, 5.0, 20, 1e-4), (0.9, 4.0, 5, 1e-5)]
)
def test_prv_is_never_looser_than_renyi_beyond_its_own_error(setting):
    bounds, renyi = accounting.epsilon_prv(*setting), accounting.epsilon_rdp(*setting)
    assert bounds.lower <= bounds.estimate <= bounds.upper
    assert bounds.upper <= renyi + (bounds.upper - bounds.lower)
    assert bounds.upper - bounds.lower < 0.01 * bounds.upper


@settings(max_examples=3, deadline=None, derandomize=True)
@given(q=st.floats(0.02, 0.5), sigma=st.floats(1.5, 6.0), steps=st.integers(2, 60), factor=st.floats(1.3, 2.0))
def test_monotone_in_every_argument(q, sigma, steps, factor):
    delta = 1e-5

    def prv_upper(q, sigma, steps, delta):
        return accounting._prv_many(q, sigma, [steps], steps, delta, precision=0.02)[0].upper  # coarse, hence quick

    for epsilon in (prv_upper, accounting.epsilon_rdp):
        base = epsilon(q, sigma, steps, delta)
        assert epsilon(q, sigma * factor, steps, delta) < base
        assert epsilon(q * factor, sigma, steps, delta) > base
        assert epsilon(q, sigma, 2 * steps, delta) > base
        assert epsilon(q, sigma, steps, 10 * delta) < base


def test_trivial_cases():
    assert accounting.upper_bound(0.1, 0.0, 10, 1e-5) == (math.inf, "none", None)
    assert accounting.upper_bound(0.1, 1.0, 0, 1e-5) == (0.0, "none", None)
    for function in (accounting.epsilon_rdp, accounting.epsilon_opacus_prv, accounting.epsilon_pld):
        assert function(0.1, 0.0, 10, 1e-5) == math.inf
        assert function(0.1, 0.0, 0, 1e-5) == 0.0
    assert accounting.epsilon_prv(0.1, 0.0, 10, 1e-5).lower == math.inf
    assert accounting.mu_bound(0.1, 0.0, 10, 1e-5) is None


@pytest.mark.parametrize(
    "setting",
    [(0.0, 1.0, 1, 1e-5), (1.1, 1.0, 1, 1e-5), (math.nan, 1.0, 1, 1e-5), (0.1, -1.0, 1, 1e-5)]
    + [(0.1, math.nan, 1, 1e-5), (0.1, math.inf, 1, 1e-5), (0.1, 1.0, -1, 1e-5), (0.1, 1.0, 1, 0.0)],
)
def test_impossible_arguments_are_refused(setting):
    for function in (accounting.epsilon_prv, accounting.epsilon_rdp, accounting.upper_bound):
        with pytest.raises(ConfigError):
            function(*setting)


def test_the_known_failure_is_answered_by_opacus_and_said():
    with pytest.raises(AccountingError, match="Discrete mean"):
        accounting.epsilon_prv(*KNOWN_FAILURE)
    epsilon, name, note = accounting.upper_bound(*KNOWN_FAILURE)
    assert name == "opacus_prv"
    assert "Discrete mean" in note
    assert note.endswith("Opacus' PRV accountant.")
    # dp-accounting's pessimistic PLD at this point: 45.3712.
    assert 45.3712 <= epsilon <= 45.3712 * 1.005


def test_where_no_prv_accountant_answers_renyi_does():
    epsilon, name, note = accounting.upper_bound(0.1, 0.05, 100, 1e-5)
    assert name == "rdp"
    assert epsilon == accounting.epsilon_rdp(0.1, 0.05, 100, 1e-5) < math.inf
    assert "Renyi" in note


BROKEN = {
    "raises": ("reply({'error': 'RuntimeError: Discrete mean differs.'})", "Discrete mean differs"),
    "dies": ("os._exit(1)", "ended without an answer"),
    "hangs": ("time.sleep(600)", "no answer within 2 seconds"),
    "nan": ("reply({'value': {'bounds': [[math.nan] * 3], 'rdp': 9.0}})", "not finite"),
    "disordered": ("reply({'value': {'bounds': [[3.0, 2.0, 1.0]], 'rdp': 9.0}})", "contradict"),
    "above_renyi": ("reply({'value': {'bounds': [[10.0, 10.1, 10.2]], 'rdp': 9.0}})", "above the Renyi"),
    "noise": ("print('hello', flush=True)", "not JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_prv_accountant_is_replaced_and_said(kind, monkeypatch, tmp_path):
    action, reason = BROKEN[kind]
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, math, os, sys, time\n"
        "def reply(x): print(json.dumps(x), flush=True)\n"
        "for line in sys.stdin:\n"
        "    if sys.argv[1] == 'opacus':\n"
        "        reply({'value': {'upper': [7.0], 'rdp': 9.0, 'eps_error': 0.01}})\n"
        f"    else:\n        {action}\n"
    )
    monkeypatch.setattr(_session, "_COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(_session, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(_session, "_current", [])  # a session of its own, beside the module's
    started = time.monotonic()
    pids = []
    accounting.clear_cache()
    try:
        with accounting.session("prv", "opacus"):
            pids = [w._process.pid for w in _session._current[-1]._workers.values()]
            epsilon, name, note = accounting.upper_bound(0.1, 1.0, 100, 1e-5)
            again = accounting.upper_bound(0.1, 1.0, 100, 1e-5)  # a hung process is not waited for twice
    finally:
        accounting.clear_cache()
    assert (epsilon, name) == (7.0, "opacus_prv")
    assert reason in note
    assert again == (epsilon, name, note)
    assert time.monotonic() - started < 4
    assert len(pids) == 2
    for pid in pids:  # killed and reaped: not even a zombie is left
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_process_outlives_its_session():
    code = (
        "import dpeq.privacy._session as s\n"
        "with s.session('pld'):\n    worker = s._current[-1]._workers['pld']._process\n"
        "assert worker.poll() is not None and not s._current\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_mu_dominates_the_profile():
    q, sigma, steps, delta = 0.1, 2.0, 100, 1e-5
    mu = accounting.mu_bound(q, sigma, steps, delta)
    assert mu < math.sqrt(steps) / sigma  # subsampling helps
    for level in (1e-8, 1e-6, 1e-4, 1e-2, 0.1):
        bounds = accounting.epsilon_prv(q, sigma, steps, level)
        epsilon = gaussian_epsilon(mu, level)
        assert epsilon >= bounds.lower
        assert epsilon <= bounds.upper * 1.25 + 0.05  # conservative, yet not beside the point


@pytest.mark.parametrize("mu", [0.05, 0.7, 3.0])
def test_fit_mu_returns_the_mu_of_a_gaussian(mu):
    profile = np.vectorize(lambda epsilon: gaussian_delta(epsilon, mu))
    fitted = fit_mu(profile, gaussian_epsilon(mu, 1e-10), points=2000)
    assert mu <= fitted <= mu * 1.005


def test_grid_stays_bounded():
    wide = choose_eps_error(1e-3, 10.0, 100.0, 10_000, 1e-8)
    assert wide > 1e-3 * 10.0
    with pytest.raises(ValueError, match="too wide"):
        choose_eps_error(1e-3, 10.0, 1e6, 10_000, 1e-8)
    with pytest.raises(ValueError, match="too wide"):
        choose_eps_error(1e-3, 10.0, math.inf, 10, 1e-8)


def test_solve_sigma():
    assert solve_sigma(0.5, lambda sigma: 1 / sigma) == pytest.approx(2.0, rel=1e-3)
    assert solve_sigma(0.5, lambda sigma: 1 / sigma) >= 2.0
    with pytest.raises(ValueError, match="no noise multiplier"):
        solve_sigma(0.5, lambda sigma: 1.0)
