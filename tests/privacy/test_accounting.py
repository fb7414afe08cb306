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
from dpeq.privacy._pld import fit_mu
from dpeq.privacy._prv_worker import choose_eps_error
from dpeq.privacy.accounting import AccountingError, Comparison
from dpeq.privacy.plan import PrivacyPlan

PUBLISHED = (4096 / 50000, 3.0, 2500, 1e-5)
MISSED_SLIVER = (0.1, 0.5, 200, 1e-5)  # prv-accountant 0.2.0 by itself: "Discrete mean differs ..."


@pytest.fixture(scope="module", autouse=True)
def processes():
    """One set of child processes for the module: their start-up is paid once."""
    with accounting.session("pld", "prv", "rdp"):
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
    assert accounting.epsilon_pld(*PUBLISHED) == pytest.approx(6.59, rel=0.01)
    assert accounting.epsilon_opacus_prv(*PUBLISHED) == pytest.approx(6.59, rel=0.01)


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (4.0, 9), (0.8, 1)])
def test_without_subsampling_the_closed_form_lies_within_the_bounds(sigma, steps):
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, 1e-5)
    bounds = accounting.epsilon_prv(1.0, sigma, steps, 1e-5)
    assert bounds.lower < exact < bounds.upper
    assert bounds.upper < exact * 1.005
    assert exact < accounting.epsilon_opacus_prv(1.0, sigma, steps, 1e-5) < exact * 1.005
    assert exact < accounting.epsilon_pld(1.0, sigma, steps, 1e-5) < exact * 1.001
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
    # A tenfold finer mesh is still an upper bound, so ours lies above it, and not far.
    assert other <= accounting.epsilon_pld(q, sigma, steps, delta) <= other * 1.001
    assert other <= accounting.epsilon_pld(q, sigma, steps, delta, accounting.COARSE) <= other * 1.005


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

    for epsilon in (accounting.epsilon_pld, accounting.epsilon_rdp):
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


def test_the_mean_that_prv_accountant_misses_is_given_to_it():
    """By itself the library fails here, or gives an interval that misses the truth; see test_moments."""
    bounds = accounting.epsilon_prv(*MISSED_SLIVER)
    # dp-accounting's pessimistic PLD at a mesh of 0.0003: 45.3712.
    assert bounds.lower < 45.3712 < bounds.upper < 45.3712 * 1.005
    assert accounting.upper_bound(*MISSED_SLIVER)[1:] == ("pld", None)
    assert 45.3711 <= accounting.upper_bound(*MISSED_SLIVER)[0] <= 45.3712 * 1.001


def test_where_no_other_accountant_answers_renyi_does(monkeypatch):
    def silent(*args):
        raise AccountingError("it is silent")

    monkeypatch.setattr(accounting, "epsilon_pld", silent)
    epsilon, name, note = accounting.upper_bound(0.1, 0.05, 100, 1e-5)  # prv-accountant: too wide a grid
    assert name == "rdp"
    assert epsilon == accounting.epsilon_rdp(0.1, 0.05, 100, 1e-5) < math.inf
    assert "Renyi" in note
    assert "it is silent" in note
    monkeypatch.setattr(accounting, "epsilon_rdp", lambda *args: math.inf)
    with pytest.raises(AccountingError, match="use more noise"):
        accounting.upper_bound(0.1, 0.05, 100, 1e-5)


BROKEN = {
    "raises": ("reply({'error': 'ValueError: out of range.'})", "out of range"),
    "dies": ("os._exit(1)", "ended without an answer"),
    "hangs": ("time.sleep(600)", "no answer within 2 seconds"),
    "nan": ("reply({'value': {'epsilon': math.nan}})", "gave epsilon nan"),
    "infinite": ("reply({'value': {'epsilon': math.inf}})", "gave epsilon inf"),
    "negative": ("reply({'value': {'epsilon': -1.0}})", "gave epsilon -1.0"),
    "noise": ("print('hello', flush=True)", "not JSON"),
    "stray": ("print('17', flush=True)", "another question"),
    "answers twice": ("reply({'value': {'epsilon': 1.0}}, 0)", "another question"),
    "empty": ("reply({})", "another question"),
}
UNSOUND_PRV = {
    "nan": ([math.nan] * 3, "not finite"),
    "disordered": ([3.0, 2.0, 1.0], "contradict"),
    "above_renyi": ([10.0, 10.1, 10.2], "above the Renyi"),
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts a script in the place of the accountants: what it does for each role is given as source."""

    def install(patience=30.0, **roles):
        script = tmp_path / "worker.py"
        lines = [
            "import json, math, os, sys, time",
            "def reply(x, number=None):",
            "    print(json.dumps({'id': asked['id'] if number is None else number, **x}), flush=True)",
            "for line in sys.stdin:",
            "    asked = json.loads(line)",
            *(f"    if sys.argv[1] == '{role}': {action}" for role, action in roles.items()),
        ]
        script.write_text("\n".join(lines))
        monkeypatch.setattr(_session, "_COMMAND", (sys.executable, str(script)))
        monkeypatch.setattr(_session, "TIMEOUT_S", patience)
        monkeypatch.setattr(_session, "_current", [])  # a session of its own, beside the module's
        accounting.clear_cache()

    yield install
    accounting.clear_cache()


PRV = "reply({'value': {'bounds': [[6.8, 6.9, 7.0]], 'rdp': 9.0}})"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_accountant_is_replaced_and_said(kind, fake):
    action, reason = BROKEN[kind]
    patience = 2.0 if kind == "hangs" else 30.0  # a busy machine may take its time to start a process
    fake(patience, pld=action, prv=PRV)
    with accounting.session("pld", "prv"):
        pids = [w._process.pid for w in _session._current[-1]._workers.values()]
        epsilon, name, note = accounting.upper_bound(0.1, 1.0, 100, 1e-5)
        started = time.monotonic()
        again = accounting.upper_bound(0.1, 1.0, 100, 1e-5)  # a hung process is not waited for twice
        took = time.monotonic() - started
    assert (epsilon, name) == (7.0, "prv")
    assert reason in note
    assert again == (epsilon, name, note)
    assert took < patience
    assert len(pids) == 2
    for pid in pids:  # killed and reaped: not even a zombie is left
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("kind", UNSOUND_PRV)
def test_unsound_bounds_of_prv_accountant_are_not_used(kind, fake):
    bounds, reason = UNSOUND_PRV[kind]
    numbers = str(bounds).replace("nan", "math.nan")
    fake(
        pld="reply({'error': 'down'})",
        prv=f"reply({{'value': {{'bounds': [{numbers}], 'rdp': 9.0}}}})",
        rdp="reply({'value': 8.0})",
    )
    epsilon, name, note = accounting.upper_bound(0.1, 1.0, 100, 1e-5)
    assert (epsilon, name) == (8.0, "rdp")
    assert reason in note


def test_a_stray_line_never_becomes_the_answer_to_the_next_question(fake):
    """Each question waits for its own reply; a process that answered out of turn is replaced."""
    fake(pld="(print('{}', flush=True), reply({'value': {'epsilon': float(asked['args']['parts'][0][2])}}))")
    with accounting.session():
        for steps in (3, 4, 5):
            with pytest.raises(AccountingError, match="another question"):
                accounting.epsilon_pld(0.1, 1.0, steps, 1e-5)


def test_two_questions_to_one_process_keep_their_order(fake):
    fake(pld="reply({'value': asked['args']['x']})")
    with accounting.session():
        first, second = _session.asked("pld", "echo", x=1), _session.asked("pld", "echo", x=2)
        assert (second(), first(), first()) == (2, 1, 1)
    with pytest.raises(RuntimeError, match="within a session"):
        _session.asked("pld", "echo", x=3)


def test_a_curve_never_falls_and_never_exceeds_the_plan(fake):
    fake(pld="reply({'value': [3.0, 2.0, 9.0, 1.0]})")
    plan = PrivacyPlan(
        epsilon_target=8.0,
        delta=1e-5,
        unit="image",
        sample_rate=0.1,
        steps=4,
        expected_batch_size=100,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        public_units=1000,
        accountant="pld",
        epsilon={"pld": 7.9},
    )
    assert accounting.epsilon_curve(plan) == [(0, 0.0), (1, 3.0), (2, 3.0), (3, 7.9), (4, 7.9)]


def test_comparing_names_who_is_missing_and_why(fake):
    fake(pld="reply({'value': {'epsilon': 6.95}})", prv="os._exit(1)", rdp="reply({'value': 8.0})")
    comparison = accounting.compare(0.1, 1.0, 100, 1e-5)
    assert comparison.epsilon == {"pld": 6.95, "rdp": 8.0}
    assert "ended without" in comparison.missing["prv"]
    assert (comparison.gap, comparison.contradiction) == (None, None)


def test_comparing_asks_everyone():
    comparison = accounting.compare(*PUBLISHED, opacus=True)
    epsilon = comparison.epsilon
    assert set(epsilon) == {"pld", "prv_lower", "prv_estimate", "prv_upper", "opacus_prv", "rdp"}
    assert comparison.missing == {}
    assert epsilon["prv_lower"] < epsilon["pld"] < epsilon["prv_upper"] < epsilon["rdp"]
    assert comparison.gap == epsilon["pld"] - epsilon["prv_lower"]
    assert 0 < comparison.gap < 0.01 * epsilon["pld"]
    assert comparison.contradiction is None
    with pytest.raises(ConfigError, match="nothing to compare"):
        accounting.compare(0.1, 0.0, 10, 1e-5)


@pytest.mark.parametrize("name", ["pld", "rdp", "opacus_prv"])
def test_a_lower_bound_above_an_upper_one_is_a_contradiction(name):
    assert Comparison({"prv_lower": 2.0, "prv_upper": 2.1, name: 2.05}, {}).contradiction is None
    assert name in Comparison({"prv_lower": 2.0, "prv_upper": 2.1, name: 1.99}, {}).contradiction


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


def test_fit_mu_holds_between_the_points_of_its_grid_too():
    """A profile that falls just before each of them: dominating it there alone would not do."""
    steps = np.linspace(0.0, 5.0, 51)

    def profile(epsilons):
        before = steps[np.clip(np.ceil(np.asarray(epsilons) / 0.1 - 1e-9) - 1, 0, None).astype(int)]
        below = np.where(np.abs(np.asarray(epsilons) / 0.1 - np.round(np.asarray(epsilons) / 0.1)) < 1e-9, 0.1, 0.0)
        return np.array([gaussian_delta(e + d, 1.0) for e, d in zip(before, below, strict=True)])

    mu = fit_mu(profile, 5.0, points=50)
    between = np.arange(0.01, 4.99, 0.01)
    assert all(gaussian_delta(e, mu) >= d for e, d in zip(between, profile(between), strict=True))


def test_grid_stays_bounded():
    wide = choose_eps_error(1e-3, 10.0, 100.0, 10_000, 1e-8)
    assert wide > 1e-3 * 10.0
    with pytest.raises(ValueError, match="too wide"):
        choose_eps_error(1e-3, 10.0, 1e6, 10_000, 1e-8)
    with pytest.raises(ValueError, match="too wide"):
        choose_eps_error(1e-3, 10.0, math.inf, 10, 1e-8)
