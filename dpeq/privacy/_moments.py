"""Mean and variance of the privacy loss of one Poisson-subsampled Gaussian step, to full precision."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["loss_moments"]


def loss_moments(q: float, sigma: float) -> tuple[float, float]:
    """Mean and variance of the loss when a unit is removed; the mean is the Kullback-Leibler divergence.

    The loss ln(1 - q + q exp((2 x - 1) / (2 sigma^2))) is averaged over its own mixture of Gaussians by the trapezoidal
    rule, whose error falls exponentially for so smooth an integrand. Libraries integrate the distribution function of
    the loss instead, and may miss what lies in the sliver between ln(1 - q) and their next break.
    """
    if q == 1.0:
        return 1 / (2 * sigma * sigma), 1 / (sigma * sigma)
    x = np.linspace(-40 * sigma, 1 + 40 * sigma, 40_001)
    shifted = (2 * x - 1) / (2 * sigma * sigma)
    # Two forms of one function: the first keeps its digits where the loss is small, the second does not overflow.
    near = np.log1p(q * np.expm1(np.minimum(shifted, 1.0)))
    loss = np.where(shifted < 1.0, near, np.logaddexp(math.log1p(-q), math.log(q) + shifted))
    density = (1 - q) * np.exp(-(x**2) / (2 * sigma**2)) + q * np.exp(-((x - 1) ** 2) / (2 * sigma**2))
    weight = density * ((x[1] - x[0]) / (sigma * math.sqrt(2 * math.pi)))
    mean = float(np.dot(loss, weight))
    return mean, float(np.dot((loss - mean) ** 2, weight))
