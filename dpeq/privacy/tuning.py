"""The price of tuning: a random search with a random number of trials, beside composing every trial that was run.

If hyperparameters are drawn at random for each trial, the number of trials K is drawn from a suitable distribution and
kept secret, and *only the best trial* is released, the search costs little more than one trial, however large K is
(Papernot, Steinke 2022, arXiv 2110.03620). What a good trial is must be judged on the trial's own output, or on data of
others. Whoever looks at all trials, or runs a number of them that others can know, pays for their composition.

Distributions of K: truncated negative binomial of shape eta > -1 (eta = 1 geometric, eta = 0 logarithmic), and Poisson.
A larger eta concentrates K more and costs more: with pure epsilon a trial, the search costs (2 + eta) epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import randbits

from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy._session import AccountingError, ask
from dpeq.privacy.composition import Part, compose

__all__ = ["Price", "Search", "draw_trials", "price_of_tuning", "trial_probability"]

Candidate = Sequence[Part]


@dataclass(frozen=True)
class Search:
    """How many trials there are: ``mean`` of K, and ``shape`` eta of the negative binomial, or None for Poisson.

    Raises :class:`ConfigError` for a mean that the distribution cannot have. K >= 1 but for Poisson, which may end the
    search before its first trial.
    """

    mean: float
    shape: float | None = 1.0

    def __post_init__(self) -> None:
        if self.shape is None:
            if not 0 < self.mean < math.inf:
                raise ConfigError(f"The mean number of trials is {self.mean}; give a finite number above 0.")
        else:
            if not (self.shape > -1 and math.isfinite(self.shape)):
                raise ConfigError(f"The shape of the number of trials is {self.shape}; give a number above -1.")
            if not 1 < self.mean < math.inf:
                raise ConfigError(f"The mean number of trials is {self.mean}; give a finite number above 1.")

    @property
    def gamma(self) -> float:
        """The negative binomial's parameter in (0, 1), rounded down, which costs a little more and never less."""
        assert self.shape is not None
        low, high = 1e-300, 1.0
        while high - low > 1e-14 * high:
            middle = math.sqrt(low * high) if high > 2 * low else (low + high) / 2
            if middle in (low, high):
                break
            low, high = (middle, high) if _mean(middle, self.shape) >= self.mean else (low, middle)
        return low


@dataclass(frozen=True)
class Price:
    """Epsilon at ``delta``, each a sound upper bound.

    ``one`` trial of the costliest candidate; the whole ``search`` when only its best trial is released (Renyi);
    ``all_trials`` published, as many as were said to be done, or None.
    """

    delta: float
    one: float
    search: float
    all_trials: float | None
    trials: int | None


def _mean(gamma: float, shape: float) -> float:
    """Mean of the truncated negative binomial (Papernot and Steinke 2022, Definition 1)."""
    log_gamma = math.log(gamma)
    if shape == 0:
        return (1 / gamma - 1) / -log_gamma if gamma < 1 else 1.0
    return shape * (1 - gamma) / (gamma * -math.expm1(shape * log_gamma)) if gamma < 1 else 1.0


def price_of_tuning(
    candidates: Sequence[Candidate], delta: float, search: Search, *, trials: int | None = None
) -> Price:
    """What a random search over ``candidates`` costs, beside ``trials`` trials that are all published.

    A candidate is the parts of one trial (several, when a trial trains in phases). Where candidates cost differently,
    every order's Renyi divergence is that of the costliest: which is drawn does not depend on the data. Published
    trials are composed as if each had been the candidate that costs most. Raises :class:`ConfigError` for impossible
    numbers, :class:`~dpeq.privacy.accounting.AccountingError` when an accountant does not answer.
    """
    if not candidates or not all(candidates):
        raise ConfigError("A search needs candidates with at least one part each; give them.")
    if trials is not None and (isinstance(trials, bool) or not isinstance(trials, int) or trials < 1):
        raise ConfigError(f"The number of trials is {trials!r}; give a whole number of at least 1.")
    for candidate in candidates:
        for q, sigma, steps in candidate:
            accounting.check_setting(q, sigma, steps, delta)
            if sigma == 0 or steps == 0:
                raise ConfigError("A trial without noise or without steps cannot be tuned over; give both.")
    distinct = sorted({tuple(Part(*part) for part in candidate) for candidate in candidates})
    with accounting.session("pld", "rdp"):
        orders, divergences = _curve(distinct)
        one = max(compose(candidate, delta).epsilon for candidate in distinct)
        if search.shape is None:
            best = _poisson(orders, divergences, delta, search.mean, distinct)
        else:
            best = to_epsilon(orders, negative_binomial(orders, divergences, search), delta)
        if not math.isfinite(best):
            raise AccountingError("No Renyi order bounds this search; use more noise or fewer trials.")
        together = None
        if trials is not None:
            together = max(compose(list(candidate) * trials, delta).epsilon for candidate in distinct)
    return Price(delta, one, best, together, trials)


def _curve(candidates: Sequence[Candidate]) -> tuple[list[float], list[float]]:
    """Orders, and the largest divergence of any candidate at each."""
    largest: dict[float, float] = {}
    counts: dict[float, int] = {}
    for candidate in candidates:
        orders, values = ask("rdp", "renyi", parts=[list(part) for part in candidate])
        for order, value in zip(orders, values, strict=True):
            largest[order] = max(largest.get(order, 0.0), value)
            counts[order] = counts.get(order, 0) + 1
    known = sorted(order for order, count in counts.items() if count == len(candidates))
    return known, [largest[order] for order in known]


def negative_binomial(orders: Sequence[float], divergences: Sequence[float], search: Search) -> list[float]:
    """Renyi divergences of the search at ``orders``, from those of one trial (Papernot and Steinke 2022, Theorem 2).

    epsilon'(a) = epsilon(a) + (1 + eta) min over b of ((1 - 1/b) epsilon(b) + log(1/gamma) / b) + log(E[K]) / (a - 1).
    """
    assert search.shape is not None
    gamma = search.gamma
    log_gamma, log_mean = math.log(gamma), math.log(_mean(gamma, search.shape))
    constant = min((1 - 1 / b) * e - log_gamma / b for b, e in zip(orders, divergences, strict=True))
    return [e + (1 + search.shape) * constant + log_mean / (a - 1) for a, e in zip(orders, divergences, strict=True)]


def poisson(orders: Sequence[float], divergences: Sequence[float], deltas: Sequence[float], mean: float) -> list[float]:
    """As :func:`negative_binomial` for a Poisson number of trials (Papernot and Steinke 2022, Theorem 6).

    ``deltas`` are those of one trial at epsilon = log(1 + 1 / (a - 1)) for each order a, in both directions:
    epsilon'(a) = epsilon(a) + E[K] delta + log(E[K]) / (a - 1).
    """
    return [e + mean * d + math.log(mean) / (a - 1) for a, e, d in zip(orders, divergences, deltas, strict=True)]


def to_epsilon(orders: Sequence[float], divergences: Sequence[float], delta: float) -> float:
    """Epsilon at ``delta`` from Renyi divergences (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, Proposition 12)."""
    best = math.inf
    for a, e in zip(orders, divergences, strict=True):
        best = min(best, e + math.log1p(-1 / a) - math.log(delta * a) / (a - 1))
    return max(best, 0.0)


def _poisson(
    orders: list[float], divergences: list[float], delta: float, mean: float, candidates: Sequence[Candidate]
) -> float:
    wanted = [math.log1p(1 / (a - 1)) for a in orders]
    deltas = [0.0] * len(orders)
    for candidate in candidates:
        parts = [list(part) for part in candidate]
        answer = ask("pld", "deltas", parts=parts, epsilons=wanted, delta=delta, precision=accounting.PRECISION)
        deltas = [max(a, b) for a, b in zip(deltas, answer, strict=True)]
    return to_epsilon(orders, poisson(orders, divergences, deltas, mean), delta)


def trial_probability(search: Search, trials: int) -> float:
    """P(K = trials)."""
    if trials < (0 if search.shape is None else 1):
        return 0.0
    if search.shape is None:
        return math.exp(trials * math.log(search.mean) - search.mean - math.lgamma(trials + 1))
    eta, log_gamma, log_rest = search.shape, math.log(search.gamma), math.log1p(-search.gamma)
    if eta == 0:
        return math.exp(trials * log_rest) / (trials * -log_gamma)
    # (1 - gamma)^k / (gamma^-eta - 1) * eta (eta + 1) .. (eta + k - 1) / k!; eta and the denominator share signs.
    log_rising = math.lgamma(trials + eta) - math.lgamma(1 + eta) - math.lgamma(trials + 1)
    return math.exp(trials * log_rest + log_rising) * eta / math.expm1(-eta * log_gamma)


def draw_trials(search: Search, *, uniform: float | None = None) -> int:
    """K, drawn from the operating system's randomness; tell nobody. ``uniform`` in [0, 1) replaces it in tests."""
    point = randbits(53) / 2**53 if uniform is None else uniform
    k = 0 if search.shape is None else 1
    while True:
        p = trial_probability(search, k)
        if point < p or (p == 0.0 and k > search.mean):
            return k
        point -= p
        k += 1
