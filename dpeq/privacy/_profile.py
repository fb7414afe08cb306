"""The privacy profile of a whole training, asked of dp-accounting in the accountants' child process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpeq.privacy._pld import Part, compose, deltas, fit_mu

Json = Any

POINTS = 4000
"""Epsilons at which the profile is asked."""

PRECISION = 1e-4
"""Error in epsilon granted to the mesh, as a fraction: attackers' rates are then right to some 1e-4."""

EPSILON_MAX = 600.0  # exp(epsilon) must stay a finite double


def profile(parts: Sequence[Part], delta: float, floor: float, group: int = 1) -> Json:
    """delta(epsilon) of all ``parts`` for a ``group`` of units, from 0 to where it falls below ``floor``.

    Upper bounds, whatever rounding may hide included, for adding and removing alike: the larger of the two at every
    epsilon. Epsilons beyond 600 are left out. ``delta`` only chooses the mesh. Returns {"epsilon", "delta"}, both
    POINTS + 1 long, epsilon rising, and "mu", that of :func:`dpeq.privacy._pld.mu` with this floor, or None.
    """
    composed = compose(parts, delta, PRECISION, group)
    lowest = max(floor, 1.2 * composed.allowance)  # below, rounding is all there is
    top = composed.epsilon(lowest)
    grid = np.linspace(0.0, min(max(top, 1e-3), EPSILON_MAX), POINTS + 1)
    distribution = composed.distribution
    both = np.maximum(deltas(distribution._pmf_remove, grid), deltas(distribution._pmf_add, grid))
    bounds = both + composed.allowance
    if not np.isfinite(bounds).all():
        raise ValueError("the privacy profile is not finite")
    # A bound at one epsilon holds at every larger one.
    bounds = np.minimum.accumulate(np.clip(bounds, 0.0, 1.0))
    fitted = None
    if lowest == floor and top <= EPSILON_MAX:  # otherwise nothing is known where delta is small
        try:
            fitted = fit_mu(lambda asked: bounds, float(grid[-1]), POINTS)
        except ValueError:  # no reasonable mu: the profile stands all the same
            fitted = None
    return {"epsilon": grid.tolist(), "delta": bounds.tolist(), "mu": fitted}
