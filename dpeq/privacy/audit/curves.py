"""Families of trade-off curves, from private to less private, that an audit rejects one after the other.

A curve f is what a mechanism is claimed to satisfy: no test of false alarm rate a hits with a rate above 1 - f(a),
whether the unit is added or removed. An audit needs its inverse, the least false alarm rate of a test that hits with
rate t, here ``least_false_alarms``: convex, rising, 0 at 0.

A family orders curves by one number, its *strength*: a larger one allows more, and 0 allows nothing. An audit finds a
strength that the counts reject, so that "everything this strength allows is all there is" is false. What follows for
epsilon depends on the family, and ``assumes`` says it:

* :class:`PairCurves`: the strength is epsilon itself, at one delta. Nothing is assumed.
* :class:`GaussianCurves`: the strength is mu. That the mechanism is not mu-GDP is a fact of the experiment; that its
  epsilon is therefore at least that of the mu-Gaussian mechanism holds where its own curve is one of this family.
* :class:`SubsampledGaussianCurves`: the strength is 1 / noise multiplier, at the sampling rate and the steps of a
  plan. Its epsilon follows where training is what the plan says, but for the amount of noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy._session import ask
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.tradeoff import Profile, gaussian_profile

__all__ = [
    "Curves",
    "GaussianCurves",
    "PairCurves",
    "SubsampledGaussianCurves",
    "inverse",
    "own_curves",
    "profile_of",
]

Array = npt.NDArray[np.float64]
Inverse = Callable[[float], float]

_NOTHING = 1e-9
"""A strength below this is none."""


class Curves(Protocol):
    """One family. ``top`` is the largest strength that is asked about, ``tolerance`` the relative error of a search."""

    @property
    def delta(self) -> float: ...
    @property
    def name(self) -> str: ...
    @property
    def assumes(self) -> str: ...
    @property
    def top(self) -> float: ...
    @property
    def tolerance(self) -> float: ...
    def __hash__(self) -> int: ...
    def least_false_alarms(self, strength: float) -> Inverse: ...
    def epsilon(self, strength: float) -> float:
        """Epsilon at ``delta`` of this strength, rounded down if at all."""

    def mu(self, strength: float) -> float | None:
        """A mu below that of every Gaussian mechanism that dominates what rejects this strength; None if unknown."""

    def promise(self, false_alarms: Array, hits: Array) -> Array:
        """What to maximise when a threshold is chosen, from limits of its rates: rises with the strength rejected."""


@dataclass(frozen=True)
class GaussianCurves:
    """Gaussian differential privacy: f(a) = Phi(Phi^-1(1 - a) - mu), with epsilon read off at ``delta``."""

    delta: float
    name: ClassVar[str] = "gaussian"
    assumes: ClassVar[str] = (
        "That the mechanism's trade-off curve is that of a Gaussian mechanism, as without subsampling."
    )
    top: ClassVar[float] = 50.0
    tolerance: ClassVar[float] = 1e-9

    def __post_init__(self) -> None:
        _check_delta(self.delta)

    def least_false_alarms(self, strength: float) -> Inverse:
        from scipy.special import ndtr, ndtri

        return lambda hits: float(ndtr(ndtri(hits) - strength))

    def epsilon(self, strength: float) -> float:
        return gaussian_epsilon(strength, self.delta) * (1 - 1e-11) if strength > 0 else 0.0  # it rounds up

    def mu(self, strength: float) -> float | None:
        return strength

    def promise(self, false_alarms: Array, hits: Array) -> Array:
        return _gaussian_promise(false_alarms, hits)


@dataclass(frozen=True)
class PairCurves:
    """(epsilon, delta)-differential privacy and nothing else, at one ``delta`` (0 is allowed)."""

    delta: float
    name: ClassVar[str] = "pair"
    assumes: ClassVar[str] = "Nothing about the mechanism."
    top: ClassVar[float] = 100.0
    tolerance: ClassVar[float] = 1e-9

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise ConfigError(f"Delta is {self.delta}; give a number of at least 0 and below 1.")

    def least_false_alarms(self, strength: float) -> Inverse:
        return inverse(Profile([strength], [self.delta]))

    def epsilon(self, strength: float) -> float:
        return strength

    def mu(self, strength: float) -> float | None:
        return None

    def promise(self, false_alarms: Array, hits: Array) -> Array:
        with np.errstate(divide="ignore"):  # a rate below delta explains nothing: minus infinity
            first = np.log(np.maximum(hits - self.delta, 0.0)) - np.log(false_alarms)
            second = np.log(np.maximum(1.0 - false_alarms - self.delta, 0.0)) - np.log(1.0 - hits)
        return np.asarray(np.maximum(first, second), dtype=np.float64)


@dataclass(frozen=True)
class SubsampledGaussianCurves:
    """``steps`` Poisson-subsampled Gaussian mechanisms at ``sample_rate``, one unit added or removed.

    Curves and epsilons are dp-accounting's, rounded so that an audit can only find less: curves outwards, epsilon
    down. Raises :class:`~dpeq.privacy.accounting.AccountingError` where dp-accounting gives no profile.
    """

    delta: float
    sample_rate: float
    steps: int
    name: ClassVar[str] = "subsampled gaussian"
    assumes: ClassVar[str] = (
        "That every step is a Poisson-subsampled Gaussian mechanism at the plan's rate, with unknown noise."
    )
    top: ClassVar[float] = 4.0
    tolerance: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        _check_delta(self.delta)
        accounting.check_setting(self.sample_rate, 1.0, self.steps, self.delta)
        if self.steps < 1:
            raise ConfigError(f"The number of steps is {self.steps}; an audit needs one at least.")

    def profile(self, strength: float) -> Profile:
        """The privacy profile at noise multiplier 1 / ``strength``, rounded outwards."""
        return _profile(self.sample_rate, 1.0 / strength, self.steps, self.delta)

    def least_false_alarms(self, strength: float) -> Inverse:
        return inverse(self.profile(strength)) if strength > 0 else lambda hits: hits

    def epsilon(self, strength: float) -> float:
        if strength == 0:
            return 0.0
        upper = accounting.epsilon_pld(self.sample_rate, 1.0 / strength, self.steps, self.delta)
        return upper * (1 - 3 * accounting.PRECISION)  # three times what its grid may add

    def mu(self, strength: float) -> float | None:
        return None

    def promise(self, false_alarms: Array, hits: Array) -> Array:
        return _gaussian_promise(false_alarms, hits)


def own_curves(plan: PrivacyPlan) -> Curves:
    """The family that the plan's own mechanism belongs to. Raises :class:`ConfigError` for a non-private plan."""
    if not plan.private:
        raise ConfigError("A plan without privacy has no trade-off curve; audit it with pairs of epsilon and delta.")
    if plan.sample_rate == 1.0:
        return GaussianCurves(plan.delta)
    return SubsampledGaussianCurves(plan.delta, plan.sample_rate, plan.steps)


def profile_of(plan: PrivacyPlan) -> Profile:
    """The privacy profile of all steps of a private plan, rounded outwards; raises as :func:`own_curves`."""
    if not plan.private:
        raise ConfigError("A plan without privacy has no privacy profile; give a finite epsilon.")
    if plan.sample_rate == 1.0:
        return gaussian_profile(math.sqrt(plan.steps) / plan.noise_multiplier)
    curves = SubsampledGaussianCurves(plan.delta, plan.sample_rate, plan.steps)
    return curves.profile(1.0 / plan.noise_multiplier)


def inverse(profile: Profile) -> Inverse:
    """Least false alarm rate at a hit rate, below every test that the profile allows.

    A hit rate t is allowed at false alarm rate a when t <= e^eps a + delta and t <= 1 - e^-eps (1 - delta - a) for
    every point (eps, delta) of the profile (:mod:`dpeq.privacy.tradeoff`); both are solved for a.
    """
    up, down, delta = np.exp(profile.epsilon), np.exp(-profile.epsilon), profile.delta

    def least(hits: float) -> float:
        first = float((down * (hits - delta)).max())
        second = float((1.0 - delta - up * (1.0 - hits)).max())
        return max(first, second, 0.0)

    return least


def largest_rejected(curves: Curves, rejects: Callable[[Inverse], bool]) -> float:
    """A strength that is rejected, within the family's tolerance of one that is not; 0 when 0 is not rejected.

    ``top`` where that is rejected too: the bound is then right and says too little.
    """

    def rejected(strength: float) -> bool:
        return rejects(curves.least_false_alarms(strength))

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, min(curves.top, 0.5)
    while rejected(high):
        low = high
        if low >= curves.top:
            return low
        high = min(2 * high, curves.top)
    while high - low > curves.tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
        if high < _NOTHING:
            return 0.0
    return low


@functools.lru_cache(maxsize=256)
def _profile(q: float, sigma: float, steps: int, delta: float) -> Profile:
    floor = min(accounting.DELTA_FLOOR, delta / 10.0)
    answer = ask("pld", "profile", parts=[[q, sigma, steps]], delta=delta, floor=floor)
    return Profile(answer["epsilon"], answer["delta"])


def _gaussian_promise(false_alarms: Array, hits: Array) -> Array:
    from scipy.special import ndtri

    return np.asarray(ndtri(hits) - ndtri(false_alarms), dtype=np.float64)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"Delta is {delta}; give a number between 0 and 1.")
