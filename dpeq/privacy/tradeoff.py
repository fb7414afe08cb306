"""What a privacy profile allows an attacker: hit rates, advantage, certainty. Upper bounds only, each derived below.

A profile is delta(epsilon) for epsilon >= 0, for a unit added and for a unit removed alike. Write P for what training
releases with the unit, Q for what it releases without it (or the other way round: the profile covers both), a = Q(E)
for an attacker's false alarm rate, t = P(E) for the hit rate, E for "the attacker says: it was in".

* (epsilon, delta)-DP says t <= e^eps a + delta and, for the complement with P and Q exchanged,
  t <= 1 - e^-eps (1 - delta - a). Both hold at *every* epsilon, so the smallest of all of them holds: it is 1 - f(a), f
  the trade-off function (Dong, Roth, Su 2022, Proposition 6, arXiv 1905.02383). Any finite choice of epsilons gives an
  upper bound, and as the smallest of straight lines it is concave in a.
* advantage: the largest t - a. Under one (epsilon, delta) it is (e^eps - 1 + 2 delta) / (e^eps + 1); Kairouz, Oh,
  Viswanath 2015 (arXiv 1311.0776).
* certainty: for E = {P/Q > e^s}, Q(E) < e^-s P(E), so P(E) (1 - e^(eps - s)) <= delta and P(E) <= c as soon as
  s >= eps - ln(1 - delta / c): with probability at least 1 - c the odds rise by no more than the factor e^s. (With c =
  delta this says nothing at that epsilon: (epsilon, delta)-DP does *not* keep the odds below e^eps with probability
  1 - delta. A larger epsilon of the profile answers there.) See Kasiviswanathan and Smith 2014 (arXiv 0803.3946).
* reconstruction: :meth:`Profile.reconstruction`.
* regret: how far one curve lies from another in Kaissis et al. 2024 (arXiv 2406.08918) and Gomez et al. 2025 (arXiv
  2503.10945): the least k with f(a + k) - k <= g(a) for all a. Moving f by (-k, -k) lowers its Bayes risk
  min_a pi a + (1 - pi) f(a) by k for every pi, and convex curves are ordered as their Bayes risks are; at
  pi = e^eps / (1 + e^eps) that risk is (1 - delta(eps)) / (1 + e^eps). Hence k = max (delta_g - delta_f) / (1 + e^eps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dpeq.errors import ConfigError

__all__ = ["Profile", "gaussian_delta", "gaussian_profile"]

Array = npt.NDArray[np.float64]

_POINTS = 4000
_EPSILON_MAX = 600.0  # exp(epsilon) must stay a finite double


class Profile:
    """Upper bounds ``delta[i]`` on the privacy profile at ``epsilon[i]`` >= 0, rising; a single pair will do.

    Raises :class:`ConfigError` for lists that are no profile.
    """

    def __init__(self, epsilon: Sequence[float], delta: Sequence[float]) -> None:
        eps, dlt = np.asarray(epsilon, dtype=np.float64), np.asarray(delta, dtype=np.float64)
        if eps.ndim != 1 or eps.shape != dlt.shape or not eps.size:
            raise ConfigError("A privacy profile needs as many deltas as epsilons, at least one; give two equal lists.")
        if not (np.isfinite(eps).all() and eps[0] >= 0 and (np.diff(eps) > 0).all() and eps[-1] <= _EPSILON_MAX):
            raise ConfigError(f"A privacy profile's epsilons must rise from 0 or more to at most {_EPSILON_MAX:g}.")
        if not ((dlt >= 0) & (dlt <= 1)).all() or (np.diff(dlt) > 0).any():
            raise ConfigError("A privacy profile's deltas must lie between 0 and 1 and never rise with epsilon.")
        eps, dlt = eps.copy(), dlt.copy()
        for values in (eps, dlt):
            values.setflags(write=False)  # a profile is kept and shared
        self.epsilon: Array = eps
        self.delta: Array = dlt

    def epsilon_at(self, delta: float) -> float:
        """The smallest of the profile's epsilons whose delta is at most ``delta``; infinite when there is none."""
        holds = np.flatnonzero(self.delta <= delta)
        return float(self.epsilon[holds[0]]) if holds.size else math.inf

    def hit_rate(self, false_alarms: float) -> float:
        """Largest hit rate of any membership test with this false alarm rate, both in 0..1."""
        _share("false alarm rate", false_alarms)
        up, down = np.exp(self.epsilon), np.exp(-self.epsilon)
        first = float((up * false_alarms + self.delta).min())
        second = float((1.0 - down * (1.0 - self.delta - false_alarms)).min())
        return min(max(min(first, second), false_alarms), 1.0)

    @property
    def advantage(self) -> float:
        """Largest hit rate minus false alarm rate of any membership test."""
        rise = np.exp(-self.epsilon)
        return float(((1.0 - rise + 2.0 * self.delta * rise) / (1.0 + rise)).min())

    def reconstruction(self, base_rate: float) -> float:
        """Largest chance to reconstruct the unit for somebody who succeeds with ``base_rate`` without its data.

        "Reconstruct" is any test of success fixed beforehand. The unit z is drawn from what the attacker believes, the
        rest of the data is known to him, and R makes a guess from what was released. With E_z = {R is right about z},
        his success is the mean over z of P_z(E_z) <= mean of 1 - f(Q(E_z)) <= 1 - f(mean of Q(E_z)), because 1 - f is
        concave, and that mean is the success against a training without z, at most the base rate kappa; so
        1 - f(kappa). Q is the training with z *removed*: this is add/remove, without a further factor. (Hayes, Balle,
        Mahloujifar 2023, arXiv 2302.07225; Balle, Cherubin, Hayes 2022, arXiv 2201.04845; Kaissis et al. 2023, arXiv
        2307.03928, for 1 - f.)
        """
        _share("base rate", base_rate)
        return self.hit_rate(base_rate)

    def best_guess(self, prior: float) -> float:
        """Largest chance that a guess "in" or "not in" is right, when the unit is in with probability ``prior``.

        Under one (epsilon, delta) the region of (a, t) has corners at a = 0, at the crossing of its two lines and at
        t = 1; a linear score is largest at a corner.
        """
        _share("prior", prior)
        d, fall = self.delta, np.exp(-self.epsilon)
        corner = 1.0 - fall * (1.0 - d) / (1.0 + fall)
        score = np.maximum(np.maximum(1.0 - prior + prior * d, prior + (1.0 - prior) * d), corner)
        return float(score.min())

    def posterior_of_flagged(self, prior: float, false_alarms: float) -> float:
        """Largest probability that a unit, in with probability ``prior``, is in when a test with this rate says so.

        The positive predictive value; it rises with the hit rate, so an upper bound on that bounds it.
        """
        _share("prior", prior)
        hits = prior * self.hit_rate(false_alarms)
        named = hits + (1.0 - prior) * false_alarms
        return hits / named if named > 0 else prior

    def odds_factor(self, exception: float) -> float:
        """ln of a factor by which the odds "in : not in" rise no more, but with probability ``exception``.

        The probability is over the randomness of training and holds whether the unit is in or not; the same factor
        bounds the odds' fall. Infinite when no delta of the profile lies below ``exception``.
        """
        if not 0 < exception < 1:
            raise ConfigError(f"The probability of an exception is {exception}; give a number between 0 and 1.")
        below = self.delta < exception
        if not below.any():
            return math.inf
        return float((self.epsilon[below] - np.log1p(-self.delta[below] / exception)).min())

    def posterior(self, prior: float, exception: float) -> float:
        """What the belief ``prior`` that the unit is in can become at most, but with probability ``exception``."""
        _share("prior", prior)
        factor = self.odds_factor(exception)
        if prior in (0.0, 1.0) or math.isinf(factor):
            return prior if prior in (0.0, 1.0) else 1.0
        return 1.0 / (1.0 + (1.0 - prior) / prior * math.exp(-factor))

    def regret(self, mu: float) -> float:
        """How much more the mu-Gaussian curve allows than this profile, at worst over all priors; 0 is a perfect fit.

        In units of an attacker's error probability: mu says that he errs less often, by at most this.
        """
        excess = (gaussian_delta(self.epsilon, mu) - self.delta) / (1.0 + np.exp(self.epsilon))
        return max(float(excess.max()), 0.0)


def gaussian_delta(epsilon: Array, mu: float) -> Array:
    """Privacy profile of the Gaussian mechanism: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8."""
    from scipy.special import log_ndtr, ndtr

    if mu == 0:
        return np.zeros_like(epsilon)
    value = ndtr(-epsilon / mu + mu / 2.0) - np.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2.0))
    return np.asarray(np.clip(value, 0.0, 1.0), dtype=np.float64)


def gaussian_profile(mu: float, floor: float = 1e-10) -> Profile:
    """The profile of mu-Gaussian DP, from epsilon 0 to where delta falls below ``floor``."""
    if not (mu >= 0 and math.isfinite(mu)):
        raise ConfigError(f"mu is {mu}; give a finite number that is not negative.")
    if mu == 0:
        return Profile([0.0], [0.0])
    top = min(mu * mu / 2.0 + mu * math.sqrt(-2.0 * math.log(floor)), _EPSILON_MAX)
    grid = np.linspace(0.0, top, _POINTS + 1)
    return Profile(list(grid), list(np.minimum.accumulate(gaussian_delta(grid, mu))))


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"The {name} is {value}; give a number between 0 and 1.")
