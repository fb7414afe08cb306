"""How much epsilon a plan costs, on plain numbers: q (sampling rate), sigma (noise multiplier), T (steps), delta.

Every function speaks of T Poisson-subsampled Gaussian mechanisms under add/remove of one unit. The number a plan rests
on is an *upper bound* that includes the errors of its method: prv-accountant's where it answers (Gopi, Lee, Wutschitz
2021, arXiv 2106.02848), else Opacus' PRV accountant's, else the Renyi bound; a fall-back is said in one sentence. The
accountants run in child processes (:mod:`dpeq.privacy._prv_worker`), so that a time-out really stops the work, nothing
they print or warn reaches the caller, and this module imports neither torch nor an accountant. Child processes live
within :func:`session`; every public function opens one when none is open.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dpeq.errors import ConfigError
from dpeq.privacy._session import AccountingError, ask, session

if TYPE_CHECKING:
    from dpeq.privacy.plan import PrivacyPlan

__all__ = [
    "AccountingError",
    "Bounds",
    "clear_cache",
    "epsilon_curve",
    "epsilon_opacus_prv",
    "epsilon_pld",
    "epsilon_prv",
    "epsilon_rdp",
    "gdp_mu",
    "mu_bound",
    "session",
    "starting_sigma",
    "upper_bound",
]

PRECISION, CURVE_PRECISION = 1e-3, 5e-3
"""Error in epsilon granted to the PRV accountants, as a fraction of epsilon; the upper bound has it added."""

DELTA_FLOOR = 1e-10
"""mu speaks for every epsilon at which the mechanism's delta is at least this (see :func:`gdp_mu`)."""


class Bounds(NamedTuple):
    """Epsilon between ``lower`` and ``upper`` (both sound, errors of the method included), probably ``estimate``."""

    lower: float
    estimate: float
    upper: float


def _check(q: float, sigma: float, steps: int, delta: float) -> None:
    if not 0 < q <= 1:
        raise ConfigError(f"The sampling rate is {q}; give a rate above 0 and at most 1.")
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ConfigError(f"The noise multiplier is {sigma}; give a finite number that is not negative.")
    if steps < 0:
        raise ConfigError(f"The number of steps is {steps}; give zero or more.")
    if not 0 < delta < 1:
        raise ConfigError(f"Delta is {delta}; give a number between 0 and 1.")


def _trivial(sigma: float, steps: int) -> float | None:
    """Epsilon where no accountant is needed: nothing was released, or it was released without noise."""
    if steps == 0:
        return 0.0
    return math.inf if sigma == 0 else None


def _agree(lower: float, estimate: float, upper: float, rdp: float) -> None:
    if not all(map(math.isfinite, (lower, estimate, upper))):
        raise AccountingError(f"its bounds ({lower}, {estimate}, {upper}) are not finite")
    if not (lower <= estimate <= upper and upper > 0):
        raise AccountingError(f"its bounds ({lower}, {estimate}, {upper}) contradict each other")
    if lower > rdp * (1 + 1e-9):  # the Renyi bound is a theorem: no sound lower bound lies above it
        raise AccountingError(f"its lower bound {lower:.6g} lies above the Renyi upper bound {rdp:.6g}")


def _prv_many(
    q: float, sigma: float, steps: Sequence[int], max_steps: int, delta: float, precision: float = PRECISION
) -> list[Bounds]:
    args = {"q": q, "sigma": sigma, "steps": list(steps), "max_steps": max_steps, "delta": delta}
    value = ask("prv", "prv", precision=precision, **args)
    result = []
    for lower, estimate, upper in value["bounds"]:
        _agree(lower, estimate, upper, value["rdp"])
        result.append(Bounds(max(0.0, lower), max(0.0, estimate), upper))
    return result


def _opacus_prv_many(
    q: float, sigma: float, steps: Sequence[int], max_steps: int, delta: float, precision: float = PRECISION
) -> list[float]:
    args = {"q": q, "sigma": sigma, "steps": list(steps), "max_steps": max_steps, "delta": delta}
    value = ask("opacus", "prv", precision=precision, **args)
    for upper in value["upper"]:  # Opacus gives the upper bound alone; its lower one lies some 2 errors below
        _agree(upper - 3 * value["eps_error"], upper, upper, value["rdp"])
    return [float(upper) for upper in value["upper"]]


@functools.lru_cache(maxsize=1024)
def epsilon_prv(q: float, sigma: float, T: int, delta: float) -> Bounds:
    """prv-accountant's sound bounds on epsilon.

    Raises :class:`AccountingError` when it raises, takes longer than the time-out of 60 seconds, or gives bounds that
    are not finite, not ordered, or above the Renyi bound; :class:`ConfigError` for impossible arguments.
    """
    _check(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return Bounds(trivial, trivial, trivial)
    return _prv_many(q, sigma, [T], T, delta)[0]


@functools.lru_cache(maxsize=1024)
def epsilon_opacus_prv(q: float, sigma: float, T: int, delta: float) -> float:
    """Upper bound of Opacus' PRV accountant, its errors in epsilon and delta inside; raises as :func:`epsilon_prv`."""
    _check(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    return _opacus_prv_many(q, sigma, [T], T, delta)[0] if trivial is None else trivial


@functools.lru_cache(maxsize=1024)
def epsilon_rdp(q: float, sigma: float, T: int, delta: float) -> float:
    """Opacus' Renyi upper bound over orders 1.01 to 1024; infinite when no order has a finite value.

    Where the best order is the first or the last of the grid the number is still an upper bound, only a looser one.
    """
    _check(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    return float(ask("opacus", "rdp", q=q, sigma=sigma, steps=[T], delta=delta)[0]) if trivial is None else trivial


def upper_bound(q: float, sigma: float, T: int, delta: float) -> tuple[float, str, str | None]:
    """The sound upper bound on epsilon: (epsilon, accountant, note).

    ``accountant`` is "prv", or a fall-back: "opacus_prv", then "rdp"; "none" for T = 0 (epsilon 0) and sigma = 0
    (epsilon infinite). ``note`` is None or one sentence that says why a fall-back was used.
    """
    _check(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return trivial, "none", None
    try:
        return epsilon_prv(q, sigma, T, delta).upper, "prv", None
    except AccountingError as error:
        note = f"prv-accountant gave no usable answer ({error}), so epsilon is the upper bound of "
    try:
        return epsilon_opacus_prv(q, sigma, T, delta), "opacus_prv", note + "Opacus' PRV accountant."
    except AccountingError as error:
        note += f"Opacus' Renyi accountant (its PRV accountant gave none either: {error})."
    epsilon = epsilon_rdp(q, sigma, T, delta)
    if not math.isfinite(epsilon):
        raise AccountingError(f"No accountant can bound epsilon at noise multiplier {sigma}; use more noise.")
    return epsilon, "rdp", note


def starting_sigma(q: float, T: int, delta: float, epsilon: float) -> float:
    """A noise multiplier whose Renyi bound meets ``epsilon``: an upper end for a calibration, cheap to find."""
    _check(q, 0.0, T, delta)
    for role in ("prv", "opacus"):
        with contextlib.suppress(AccountingError):  # the second role answers for the first; neither is said below
            return float(ask(role, "sigma", q=q, steps=T, delta=delta, epsilon=epsilon))
    raise AccountingError(f"No noise multiplier was found for epsilon {epsilon}; ask for a larger epsilon.")


@functools.lru_cache(maxsize=256)
def _pld(q: float, sigma: float, T: int, delta: float) -> tuple[float, float | None]:
    scale = upper_bound(q, sigma, T, delta)[0]
    floor = min(DELTA_FLOOR, delta / 10)
    value = ask("pld", "pld", q=q, sigma=sigma, steps=T, delta=delta, scale=scale, floor=floor)
    epsilon, mu = float(value["epsilon"]), value["mu"]
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise AccountingError(f"dp-accounting gave epsilon {epsilon}")
    return epsilon, None if mu is None else float(mu)


def epsilon_pld(q: float, sigma: float, T: int, delta: float) -> float:
    """Pessimistic epsilon of dp-accounting's privacy loss distribution; raises as :func:`epsilon_prv`."""
    _check(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    return _pld(q, sigma, T, delta)[0] if trivial is None else trivial


def mu_bound(q: float, sigma: float, T: int, delta: float) -> float | None:
    """:func:`gdp_mu` on plain numbers; ``delta`` only lowers the floor when it is below ten times that floor."""
    _check(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return 0.0 if trivial == 0.0 else None
    if q == 1.0:
        return math.sqrt(T) / sigma  # no subsampling: T Gaussian mechanisms are exactly one with this mu
    try:
        return _pld(q, sigma, T, delta)[1]
    except AccountingError:
        return None


def gdp_mu(plan: PrivacyPlan) -> float | None:
    """Gaussian-DP parameter mu for reporting (Gomez, Kulynych, Kaissis, Hayes, Balle, Honkela 2025, arXiv 2503.10945).

    Without subsampling mu = sqrt(T) / sigma, exactly. Otherwise a conservative fit: the smallest mu (rounded up) with
    Phi(-eps/mu + mu/2) - exp(eps) Phi(-eps/mu - mu/2) >= delta(eps) for *every* eps >= 0 at which delta(eps) is at
    least :data:`DELTA_FLOOR`, where delta(eps) is a pessimistic privacy profile of the whole training (dp-accounting,
    both directions of add/remove). Below that floor nothing is claimed: in the extreme tail a subsampled Gaussian
    resembles an unsampled one, and only mu = sqrt(T) / sigma would dominate it everywhere. None when the plan is
    non-private or dp-accounting gives no answer.
    """
    return mu_bound(plan.sample_rate, plan.noise_multiplier, plan.steps, plan.delta)


def epsilon_curve(plan: PrivacyPlan, points: int = 25) -> list[tuple[int, float]]:
    """Upper bound on epsilon after about ``points`` step counts, by the plan's own accountant: [(step, epsilon)].

    Starts at (0, 0.0), never decreases, and ends exactly at (plan.steps, plan.epsilon_spent); a non-private plan jumps
    to infinity at step 1. Raises :class:`AccountingError` when the accountant does not answer.
    """
    if points < 2:
        raise ConfigError(f"An epsilon curve of {points} points was asked for; ask for at least 2.")
    count = min(points - 1, plan.steps)
    steps = sorted({max(1, round(plan.steps * i / count)) for i in range(1, count + 1)})
    if not plan.private:
        return [(0, 0.0), *((step, math.inf) for step in steps)]
    q, sigma, delta = plan.sample_rate, plan.noise_multiplier, plan.delta
    try:
        if plan.accountant == "prv":
            values = [b.upper for b in _prv_many(q, sigma, steps, plan.steps, delta, CURVE_PRECISION)]
        elif plan.accountant == "opacus_prv":
            values = _opacus_prv_many(q, sigma, steps, plan.steps, delta, CURVE_PRECISION)
        else:
            values = [float(x) for x in ask("opacus", "rdp", q=q, sigma=sigma, steps=steps, delta=delta)]
    except AccountingError as error:
        raise AccountingError(
            f"The plan's accountant {plan.accountant!r} gave no epsilon curve ({error}); make the plan anew here."
        ) from error
    # Fewer steps never cost more than all of them, so the plan's epsilon bounds every point; earlier points bound none.
    curve, highest = [(0, 0.0)], 0.0
    for step, value in zip(steps[:-1], values[:-1], strict=True):
        highest = min(max(highest, value), plan.epsilon_spent)
        curve.append((step, highest))
    return [*curve, (plan.steps, plan.epsilon_spent)]


def clear_cache() -> None:
    """Forgets the answers kept in this process."""
    for function in (epsilon_prv, epsilon_opacus_prv, epsilon_rdp, _pld):
        function.cache_clear()
