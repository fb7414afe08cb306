"""How much epsilon a plan costs, on plain numbers: q (sampling rate), sigma (noise multiplier), T (steps), delta.

Every function speaks of T Poisson-subsampled Gaussian mechanisms under add/remove of one unit. The number a plan rests
on is an *upper bound* that includes the errors of its method: dp-accounting's privacy loss distribution, rounded
pessimistically, in both directions of add/remove and with room for floating point (:mod:`dpeq.privacy._pld`); where it
gives none, prv-accountant's upper bound (Gopi, Lee, Wutschitz 2021, arXiv 2106.02848), else Opacus' Renyi bound, and
one sentence says so. :func:`compare` asks them all.

The accountants run in child processes (:mod:`dpeq.privacy._prv_worker`), so that a time-out really stops the work,
nothing they print or warn reaches the caller, and this module imports neither torch nor an accountant. Child processes
live within :func:`session`; every public function opens one when none is open.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dpeq.errors import ConfigError
from dpeq.privacy._session import AccountingError, ask, asked, session

if TYPE_CHECKING:
    from dpeq.privacy.plan import PrivacyPlan

__all__ = [
    "AccountingError",
    "Bounds",
    "Comparison",
    "clear_cache",
    "compare",
    "epsilon_curve",
    "epsilon_opacus_prv",
    "epsilon_pld",
    "epsilon_prv",
    "epsilon_rdp",
    "gdp_mu",
    "mu_bound",
    "session",
    "upper_bound",
]

PRECISION, COARSE = 3e-4, 3e-3
"""What the grid of the privacy loss may add to epsilon, as a fraction of it; the coarse one is for a first search."""

PRV_PRECISION, CURVE_PRECISION = 2e-3, 5e-3
"""Error in epsilon granted to the PRV accountants, as a fraction of epsilon; the upper bound has it added."""

DELTA_FLOOR = 1e-10
"""mu speaks for every epsilon at which the mechanism's delta is at least this (see :func:`gdp_mu`)."""


class Bounds(NamedTuple):
    """Epsilon between ``lower`` and ``upper`` (both sound, errors of the method included), probably ``estimate``."""

    lower: float
    estimate: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """What every accountant says of one setting, and why one says nothing.

    ``epsilon`` may hold "pld", "prv_lower", "prv_estimate", "prv_upper", "opacus_prv", "rdp"; ``missing`` maps
    "pld", "prv", "opacus_prv" or "rdp" to a reason. All but prv_lower and prv_estimate are upper bounds.
    """

    epsilon: dict[str, float]
    missing: dict[str, str]

    @property
    def gap(self) -> float | None:
        """How far the smallest upper bound lies above the largest lower one: no accountant can gain more than that."""
        uppers = [value for name, value in self.epsilon.items() if name not in ("prv_lower", "prv_estimate")]
        if not uppers or "prv_lower" not in self.epsilon:
            return None
        return min(uppers) - self.epsilon["prv_lower"]

    @property
    def contradiction(self) -> str | None:
        """One sentence when a lower bound lies above an upper one: then one of two accountants is wrong."""
        lower = self.epsilon.get("prv_lower", 0.0)
        for name in ("pld", "opacus_prv", "rdp"):
            if self.epsilon.get(name, math.inf) < lower * (1 - 1e-9):
                return (
                    f"Two accountants contradict each other: prv-accountant says that epsilon is at least {lower:.6g}, "
                    f"{name} that it is at most {self.epsilon[name]:.6g}; change the plan a little, and report this."
                )
        return None


def check_setting(q: float, sigma: float, steps: int, delta: float) -> None:
    """Raises :class:`ConfigError` for what no accountant can be asked."""
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


def _bound(value: Any, name: str) -> float:
    epsilon = float(value)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise AccountingError(f"{name} gave epsilon {epsilon}")
    return epsilon


def _agree(lower: float, estimate: float, upper: float, rdp: float) -> None:
    if not all(map(math.isfinite, (lower, estimate, upper))):
        raise AccountingError(f"its bounds ({lower}, {estimate}, {upper}) are not finite")
    if not (lower <= estimate <= upper and upper > 0):
        raise AccountingError(f"its bounds ({lower}, {estimate}, {upper}) contradict each other")
    if lower > rdp * (1 + 1e-9):  # the Renyi bound is a theorem: no sound lower bound lies above it
        raise AccountingError(f"its lower bound {lower:.6g} lies above the Renyi upper bound {rdp:.6g}")


def _prv_bounds(value: Any) -> list[Bounds]:
    result = []
    for lower, estimate, upper in value["bounds"]:
        _agree(lower, estimate, upper, value["rdp"])
        result.append(Bounds(max(0.0, lower), max(0.0, estimate), upper))
    return result


def _prv_question(
    q: float, sigma: float, steps: Sequence[int], max_steps: int, delta: float, precision: float = PRV_PRECISION
) -> dict[str, Any]:
    numbers = {"q": q, "sigma": sigma, "steps": list(steps), "max_steps": max_steps, "delta": delta}
    return {"op": "prv", "precision": precision, **numbers}


def _opacus_prv_bounds(value: Any) -> list[float]:
    for upper in value["upper"]:  # Opacus gives the upper bound alone; its lower one lies some 2 errors below
        _agree(upper - 3 * value["eps_error"], upper, upper, value["rdp"])
    return [float(upper) for upper in value["upper"]]


@functools.lru_cache(maxsize=1024)
def epsilon_pld(q: float, sigma: float, T: int, delta: float, precision: float = PRECISION) -> float:
    """Pessimistic epsilon of dp-accounting's privacy loss distribution: a sound upper bound.

    ``precision`` is about how much of it the rounding to a grid may be; a coarser one is larger and as sound. Raises
    :class:`AccountingError` when the library raises, takes longer than the time-out of 60 seconds, or gives no finite
    number; :class:`ConfigError` for impossible arguments.
    """
    check_setting(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return trivial
    value = ask("pld", "epsilon", parts=[[q, sigma, T]], delta=delta, precision=precision)
    return _bound(value["epsilon"], "dp-accounting")


@functools.lru_cache(maxsize=1024)
def epsilon_prv(q: float, sigma: float, T: int, delta: float) -> Bounds:
    """prv-accountant's bounds on epsilon, for removing a unit; raises as :func:`epsilon_pld`.

    Also raises when the bounds are not finite, not ordered, or above the Renyi bound.
    """
    check_setting(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return Bounds(trivial, trivial, trivial)
    return _prv_bounds(ask("prv", **_prv_question(q, sigma, [T], T, delta)))[0]


@functools.lru_cache(maxsize=1024)
def epsilon_opacus_prv(q: float, sigma: float, T: int, delta: float) -> float:
    """Upper bound of Opacus' PRV accountant, its errors in epsilon and delta inside; raises as :func:`epsilon_prv`."""
    check_setting(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return trivial
    return _opacus_prv_bounds(ask("opacus", **_prv_question(q, sigma, [T], T, delta)))[0]


@functools.lru_cache(maxsize=1024)
def epsilon_rdp(q: float, sigma: float, T: int, delta: float) -> float:
    """Opacus' Renyi upper bound over orders 1.01 to 1024; infinite when no order has a finite value.

    Where the best order is the first or the last of the grid the number is still an upper bound, only a looser one.
    """
    check_setting(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    return float(ask("rdp", "epsilon", parts=[[q, sigma, T]], delta=delta)) if trivial is None else trivial


def upper_bound(
    q: float, sigma: float, T: int, delta: float, precision: float = PRECISION
) -> tuple[float, str, str | None]:
    """The sound upper bound on epsilon: (epsilon, accountant, note).

    ``accountant`` is "pld", or a fall-back: "prv", then "rdp"; "none" for T = 0 (epsilon 0) and sigma = 0 (epsilon
    infinite). ``note`` is None or one sentence that says why a fall-back was used. Raises :class:`AccountingError`
    when no accountant has a bound, :class:`ConfigError` for impossible arguments.
    """
    check_setting(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return trivial, "none", None
    try:
        return epsilon_pld(q, sigma, T, delta, precision), "pld", None
    except AccountingError as error:
        note = f"dp-accounting gave no usable answer ({error}), so epsilon is the upper bound of "
    try:
        return epsilon_prv(q, sigma, T, delta).upper, "prv", note + "prv-accountant."
    except AccountingError as error:
        note += f"Opacus' Renyi accountant (prv-accountant gave none either: {error})."
    epsilon = epsilon_rdp(q, sigma, T, delta)
    if not math.isfinite(epsilon):
        raise AccountingError(f"No accountant can bound epsilon at noise multiplier {sigma}; use more noise.")
    return epsilon, "rdp", note


def compare(q: float, sigma: float, T: int, delta: float, *, opacus: bool = False) -> Comparison:
    """All accountants on one setting, working side by side; ``opacus`` adds its PRV accountant, the slowest.

    Nothing depends on an accountant that is missing from the answer. Raises :class:`ConfigError` for impossible
    arguments and for sigma = 0 or T = 0, where there is nothing to compare.
    """
    check_setting(q, sigma, T, delta)
    if _trivial(sigma, T) is not None:
        raise ConfigError("Without noise or without steps there is nothing to compare; give both.")
    epsilon: dict[str, float] = {}
    missing: dict[str, str] = {}

    def read_prv(value: Any) -> dict[str, float]:
        bounds = _prv_bounds(value)[0]
        return {"prv_lower": bounds.lower, "prv_estimate": bounds.estimate, "prv_upper": bounds.upper}

    question = _prv_question(q, sigma, [T], T, delta)
    questions: dict[str, tuple[str, dict[str, Any], Callable[[Any], dict[str, float]]]] = {
        "prv": ("prv", question, read_prv),
        "rdp": (
            "rdp",
            {"op": "epsilon", "parts": [[q, sigma, T]], "delta": delta},
            lambda value: {"rdp": _bound(value, "Opacus")},
        ),
    }
    if opacus:
        questions["opacus_prv"] = ("opacus", question, lambda value: {"opacus_prv": _opacus_prv_bounds(value)[0]})
    with session(*(role for role, _, _ in questions.values())):
        pending: dict[str, Callable[[], Any]] = {}
        for name, (role, arguments, _) in questions.items():
            try:
                pending[name] = asked(role, **arguments)
            except AccountingError as error:
                missing[name] = str(error)
        try:
            epsilon["pld"] = epsilon_pld(q, sigma, T, delta)
        except AccountingError as error:
            missing["pld"] = str(error)
        for name, answer in pending.items():
            try:
                epsilon.update(questions[name][2](answer()))
            except AccountingError as error:
                missing[name] = str(error)
    return Comparison(epsilon, missing)


@functools.lru_cache(maxsize=256)
def mu_bound(q: float, sigma: float, T: int, delta: float) -> float | None:
    """:func:`gdp_mu` on plain numbers; ``delta`` only lowers the floor when it is below ten times that floor."""
    check_setting(q, sigma, T, delta)
    trivial = _trivial(sigma, T)
    if trivial is not None:
        return 0.0 if trivial == 0.0 else None
    if q == 1.0:
        return math.sqrt(T) / sigma  # no subsampling: T Gaussian mechanisms are exactly one with this mu
    floor = min(DELTA_FLOOR, delta / 10)
    try:
        return float(ask("pld", "mu", parts=[[q, sigma, T]], delta=delta, floor=floor, precision=PRECISION))
    except AccountingError:
        return None


def gdp_mu(plan: PrivacyPlan) -> float | None:
    """Gaussian-DP parameter mu for reporting (Gomez, Kulynych, Kaissis, Hayes, Balle, Honkela 2025, arXiv 2503.10945).

    Without subsampling mu = sqrt(T) / sigma, exactly. Otherwise a conservative fit: the smallest mu (rounded up) with
    Phi(-eps/mu + mu/2) - exp(eps) Phi(-eps/mu - mu/2) >= delta(eps) for *every* eps >= 0 at which delta(eps) is at
    least :data:`DELTA_FLOOR`, where delta(eps) is a pessimistic privacy profile of the whole training (dp-accounting,
    both directions of add/remove). Below that floor nothing is claimed: in the extreme tail a subsampled Gaussian
    resembles an unsampled one, and only mu = sqrt(T) / sigma would dominate it everywhere. None when the plan is
    non-private or dp-accounting gives no answer, as beyond some 50,000 steps, where rounding outweighs the floor.
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
    try:
        values = _values(plan, steps)
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


def _values(plan: PrivacyPlan, steps: list[int]) -> list[float]:
    q, sigma, delta = plan.sample_rate, plan.noise_multiplier, plan.delta
    prv = _prv_question(q, sigma, steps, plan.steps, delta, CURVE_PRECISION)
    if plan.accountant == "pld":
        numbers = {"q": q, "sigma": sigma, "steps": steps, "max_steps": plan.steps, "delta": delta}
        return [_bound(x, "dp-accounting") for x in ask("pld", "curve", precision=COARSE, **numbers)]
    if plan.accountant == "prv":
        return [bounds.upper for bounds in _prv_bounds(ask("prv", **prv))]
    if plan.accountant == "opacus_prv":
        return _opacus_prv_bounds(ask("opacus", **prv))
    return [float(x) for x in ask("rdp", "epsilons", q=q, sigma=sigma, steps=steps, delta=delta)]


def clear_cache() -> None:
    """Forgets the answers kept in this process."""
    for function in (epsilon_pld, epsilon_prv, epsilon_opacus_prv, epsilon_rdp, mu_bound):
        function.cache_clear()
