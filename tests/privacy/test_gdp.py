"""Closed forms of the Gaussian mechanism against scipy, 50 digits, and their own inverses."""

from __future__ import annotations

import math

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpeq.privacy.gdp import gaussian_delta, gaussian_epsilon, gaussian_mu, subsampled_mu, subsampled_sigma


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0, 30.0])
def test_delta_in_fifty_digits(mu, epsilon):
    with mpmath.workdps(50):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        exact = mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)
    assert gaussian_delta(mu, epsilon) == pytest.approx(float(exact), rel=1e-9, abs=1e-15)


def test_published_values():
    """Balle and Wang 2018: for epsilon = 1, delta = 1e-5 the analytic Gaussian mechanism needs sigma = 3.7307."""
    assert 1 / gaussian_mu(1.0, 1e-5) == pytest.approx(3.7307, rel=1e-4)
    assert gaussian_delta(1.0, 0.0) == pytest.approx(norm.cdf(0.5) - norm.cdf(-0.5), rel=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mu=st.floats(0.05, 12.0), exponent=st.floats(-9.0, -2.0))
def test_epsilon_and_mu_are_inverses_on_the_safe_side(mu, exponent):
    delta = 10.0**exponent
    epsilon = gaussian_epsilon(mu, delta)
    assert gaussian_delta(mu, epsilon) <= delta
    if epsilon > 0:
        assert gaussian_delta(mu, epsilon * (1 - 1e-9)) > delta * (1 - 1e-6)
        back = gaussian_mu(epsilon, delta)
        assert gaussian_delta(back, epsilon) <= delta
        assert back == pytest.approx(mu, rel=1e-6)


def test_large_losses():
    assert gaussian_epsilon(790.0, 1e-8) == pytest.approx(790.0**2 / 2 + 790 * norm.isf(1e-8), rel=1e-4)
    assert gaussian_epsilon(1e4, 1e-8) == math.inf
    assert gaussian_epsilon(1e-9, 1e-5) == 0.0


@pytest.mark.parametrize("q", [1e-3, 0.2, 1.0])
def test_the_guess_for_subsampling(q):
    assert subsampled_mu(q, subsampled_sigma(q, 1.3, 500), 500) == pytest.approx(1.3)
    assert subsampled_mu(1.0, 4.0, 4) == 0.5
    assert subsampled_mu(0.1, 0.01, 4) == math.inf
