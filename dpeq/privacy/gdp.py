"""Closed forms of Gaussian differential privacy (Dong, Roth, Su 2019, arXiv 1905.02383), without any library.

A mechanism is mu-GDP when no test tells neighbours apart better than it tells N(0, 1) from N(mu, 1). T Gaussian
mechanisms of noise multiplier sigma, without subsampling, are exactly sqrt(T) / sigma.
"""

from __future__ import annotations

import math

__all__ = ["gaussian_delta", "gaussian_epsilon", "gaussian_mu", "subsampled_mu", "subsampled_sigma"]

_MAX_EPSILON = 1e6


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """ln Phi(x), by its asymptotic series where the function itself underflows."""
    if x > -35:
        return math.log(_phi(x))
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x) + 3 / x**4)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta at ``epsilon`` of the Gaussian mechanism with ``mu`` (Balle and Wang 2018, arXiv 1805.06530, Theorem 8)."""
    second = epsilon + _log_phi(-epsilon / mu - mu / 2)
    return max(0.0, _phi(-epsilon / mu + mu / 2) - math.exp(min(second, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon >= 0 at ``delta`` of the Gaussian mechanism with ``mu``, rounded up within 1e-12 of itself."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
        if high > _MAX_EPSILON:
            return math.inf
    return _bisect(lambda epsilon: gaussian_delta(mu, epsilon) <= delta, 0.0, high)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest mu whose Gaussian mechanism meets (epsilon, delta), rounded down; 0 where none does."""
    high = 1.0
    while gaussian_delta(high, epsilon) <= delta:
        high *= 2
        if high > _MAX_EPSILON:
            return math.inf
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if gaussian_delta(middle, epsilon) <= delta:
            low = middle
        else:
            high = middle
    return low


def subsampled_mu(q: float, sigma: float, steps: int) -> float:
    """About the mu of many Poisson-subsampled steps, by the central limit theorem (Bu et al. 2020, arXiv 1911.11607).

    No bound: it may lie on either side of the truth. Good for a first guess and nothing else.
    """
    if q == 1.0:
        return math.sqrt(steps) / sigma
    exponent = 1 / (sigma * sigma)
    return math.inf if exponent > 700 else q * math.sqrt(steps * math.expm1(exponent))


def subsampled_sigma(q: float, mu: float, steps: int) -> float:
    """The inverse of :func:`subsampled_mu` in sigma."""
    return math.sqrt(steps) / mu if q == 1.0 else 1 / math.sqrt(math.log1p((mu / q) ** 2 / steps))


def _bisect(meets: object, low: float, high: float) -> float:
    assert callable(meets)
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high) or high - low <= 1e-12 * high:
            break
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high
