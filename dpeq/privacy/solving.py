"""Any one of noise multiplier, steps, batch size and epsilon, given the rest; every answer is checked afterwards.

Answers lie on grids of their own: one step more, or one unit more in the expected batch, would miss the target; so
would a noise multiplier smaller by a fraction of a percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from dpeq.errors import BudgetError, ConfigError
from dpeq.privacy import accounting
from dpeq.privacy.gdp import gaussian_mu, subsampled_mu, subsampled_sigma

__all__ = ["Solution", "Unknown", "edge", "find_sigma", "solve", "trade_off"]

_T = TypeVar("_T")
Unknown = Literal["noise_multiplier", "steps", "expected_batch_size", "epsilon"]

_SIGMA_SCALE = 10_000  # noise multipliers have 4 decimals
_MAX_SIGMA, _MAX_STEPS = 1_000_000, 1_000_000
_SLACK = 5e-4  # a noise multiplier is good enough when its cost lies within this fraction below the target


@dataclass(frozen=True)
class Solution:
    """A setting that meets its target: ``epsilon`` is the sound upper bound at ``delta``, by ``accountant``.

    ``unknown`` names what was solved for; ``sample_rate`` is per unit and step. ``expected_batch_size`` is None when a
    rate was given in its place.
    """

    unknown: Unknown
    epsilon: float
    delta: float
    noise_multiplier: float
    steps: int
    sample_rate: float
    expected_batch_size: int | None
    accountant: str
    accountant_note: str | None


@dataclass(frozen=True)
class TradeOff:
    """One point of a trade-off: what ``steps`` of an expected batch cost, and the noise beside the batch's signal.

    ``noise_to_batch`` is noise_multiplier / expected_batch_size: the noise on a mean gradient, in clipping norms.
    """

    expected_batch_size: int
    steps: int
    noise_multiplier: float
    epsilon: float
    noise_to_batch: float


def edge(
    cost: Callable[[int], float],
    target: float,
    guess: int,
    low: int,
    high: int,
    *,
    power: float,
    slack: float = 0.0,
) -> int | None:
    """The last n in low..high with cost(n) <= target before the cost exceeds it; None when no n is cheap enough.

    ``cost`` is monotone: it rises with n where ``power`` is positive and falls where it is negative; ``power`` is about
    d ln n / d ln cost. The search ends at neighbours on either side of the target, or earlier at an n whose cost lies
    within ``slack`` (a fraction) below it. What it returns was found to meet the target, whatever the cost looks like.
    """
    good: tuple[int, float] | None = None
    bad: tuple[int, float] | None = None
    best, worst = (high, low) if power > 0 else (low, high)  # the ends where an n is most wanted, and cheapest
    aim, reach = target * (1 - slack / 2), 1.0
    n = min(max(guess, low), high)
    for turn in range(300):
        value = cost(n)
        if value <= target:
            good = (n, value)
            if n == best or (slack > 0 and value >= target * (1 - slack)):
                return n
        else:
            bad = (n, value)
            if n == worst:
                return None
        if good is not None and bad is not None:
            if abs(good[0] - bad[0]) == 1:
                return good[0]
            n = _between(good, bad, aim, halve=turn % 3 == 2)
            continue
        # One side alone is known: a power law, reaching further from turn to turn.
        known = value if 0 < value < math.inf else target * (0.5 if value <= target else 2.0)
        factor = math.exp(min(max(power * reach * math.log(aim / known), -20.0), 20.0))
        reach *= 2
        n = max(n + 1, math.ceil(n * factor)) if factor > 1 else min(n - 1, math.floor(n * factor))
        n = min(max(n, low), high)
    raise AssertionError("a bisection every third turn ends long before 300 turns")


def _between(good: tuple[int, float], bad: tuple[int, float], aim: float, *, halve: bool) -> int:
    """Where a power law through both points meets ``aim``; their geometric mean when asked, so that nothing stalls."""
    share = 0.5
    if not halve and 0 < good[1] < bad[1] < math.inf:
        share = math.log(aim / good[1]) / math.log(bad[1] / good[1])
    n = round(good[0] * math.pow(bad[0] / good[0], min(max(share, 0.0), 1.0)))
    low, high = sorted((good[0], bad[0]))
    return min(max(n, low + 1), high - 1)


def _cost(q: float, sigma: float, steps: int, delta: float, precision: float = accounting.PRECISION) -> float:
    try:
        return accounting.upper_bound(q, sigma, steps, delta, precision)[0]
    except accounting.AccountingError:
        return math.inf  # what nobody can bound meets no target


def find_sigma(epsilon: float, q: float, steps: int, delta: float, *, coarse: bool = False) -> float:
    """The noise multiplier (4 decimals) whose upper bound lies within about 0.05 % below ``epsilon``.

    ``coarse`` stops at about half a percent, on a coarser grid of the accountant, and is as sound. Raises
    :class:`BudgetError` when no noise multiplier below a million meets the target.
    """
    mu = gaussian_mu(epsilon, delta)
    guess = subsampled_sigma(q, mu, steps) if mu > 0 else 10.0
    phases = ((accounting.COARSE, 10 * _SLACK), (accounting.PRECISION, _SLACK))
    for precision, slack in phases[:1] if coarse else phases:

        def cost(n: int, precision: float = precision) -> float:
            return _cost(q, n / _SIGMA_SCALE, steps, delta, precision)

        start = math.ceil(min(guess, _MAX_SIGMA) * _SIGMA_SCALE)
        found = edge(cost, epsilon, start, 1, _MAX_SIGMA * _SIGMA_SCALE, power=-0.85, slack=slack)
        if found is None:
            raise BudgetError(
                f"No noise multiplier meets epsilon {epsilon:g}; ask for a larger epsilon or fewer steps."
            )
        guess = found / _SIGMA_SCALE
    return guess


def _find_steps(epsilon: float, q: float, sigma: float, delta: float) -> int:
    mu, one = gaussian_mu(epsilon, delta), subsampled_mu(q, sigma, 1)
    guess = int(min((mu / one) ** 2, _MAX_STEPS))
    found = edge(lambda n: _cost(q, sigma, n, delta), epsilon, guess, 1, _MAX_STEPS, power=1.7)
    if found is None:
        raise BudgetError(f"One step alone costs more than epsilon {epsilon:g}; give more noise or a smaller batch.")
    if found == _MAX_STEPS:
        raise BudgetError(f"More than {_MAX_STEPS:,} steps fit into epsilon {epsilon:g}; give less noise.")
    return found


def _find_batch(epsilon: float, public_units: int, sigma: float, steps: int, delta: float) -> int:
    mu, whole = gaussian_mu(epsilon, delta), subsampled_mu(0.5, sigma, steps) / 0.5
    guess = int(min(mu / whole, 1.0) * public_units)

    def cost(batch: int) -> float:
        return _cost(batch / public_units, sigma, steps, delta)

    found = edge(cost, epsilon, guess, 1, public_units, power=0.9)
    if found is None:
        raise BudgetError(
            f"Even an expected batch of 1 costs more than epsilon {epsilon:g}; give more noise or fewer steps."
        )
    return found


def solve(
    *,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    steps: int | None = None,
    expected_batch_size: int | None = None,
    public_units: int | None = None,
    sample_rate: float | None = None,
) -> Solution:
    """The one of epsilon, noise_multiplier, steps and expected_batch_size that is left out, from the other three.

    The sampling rate is expected_batch_size / public_units, or ``sample_rate`` in their place. The smallest noise
    multiplier, the most steps, or the largest batch that meet ``epsilon`` at ``delta`` are found, and the accountant is
    asked once more about what was found. Raises :class:`ConfigError` when not exactly one is left out or a number is
    impossible, :class:`BudgetError` when nothing meets the target,
    :class:`~dpeq.privacy.accounting.AccountingError` when no accountant answers.
    """
    batch = expected_batch_size if sample_rate is None else 0
    given = {"epsilon": epsilon, "noise_multiplier": noise_multiplier, "steps": steps, "expected_batch_size": batch}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        names = " and ".join(missing) or "none"
        raise ConfigError(
            f"Of epsilon, noise_multiplier, steps and expected_batch_size leave out exactly one; left out: {names}."
        )
    unknown: Unknown = missing[0]  # type: ignore[assignment]
    _check(epsilon, noise_multiplier, steps, expected_batch_size, public_units, sample_rate)
    q = _rate(expected_batch_size, public_units, sample_rate)
    accounting.check_setting(q or 1.0, noise_multiplier or 1.0, steps or 1, delta)
    with accounting.session("pld"):
        if noise_multiplier is None:
            noise_multiplier = find_sigma(_given(epsilon), _given(q), _given(steps), delta)
        elif steps is None:
            steps = _find_steps(_given(epsilon), _given(q), noise_multiplier, delta)
        elif q is None:
            units = _given(public_units)
            expected_batch_size = _find_batch(_given(epsilon), units, noise_multiplier, steps, delta)
            q = expected_batch_size / units
        spent, accountant, note = accounting.upper_bound(_given(q), noise_multiplier, _given(steps), delta)
    if epsilon is not None and not spent <= epsilon:
        raise BudgetError(f"The {unknown} that was found costs epsilon {spent:.6g}, above {epsilon:g}; ask for more.")
    batch = None if sample_rate is not None else expected_batch_size
    return Solution(unknown, spent, delta, noise_multiplier, _given(steps), _given(q), batch, accountant, note)


def _given(value: _T | None) -> _T:
    assert value is not None  # exactly one was left out, and that one has been found
    return value


def _check(
    epsilon: float | None,
    sigma: float | None,
    steps: int | None,
    batch: int | None,
    public_units: int | None,
    sample_rate: float | None,
) -> None:
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise ConfigError(f"Epsilon is {epsilon}; give a finite number above 0.")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ConfigError(f"The noise multiplier is {sigma}; give a finite number above 0.")
    for name, value in (("steps", steps), ("expected_batch_size", batch), ("public_units", public_units)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1.")
    if sample_rate is None and public_units is None:
        raise ConfigError("The sampling rate is not known; give public_units, or sample_rate.")
    if sample_rate is not None and not 0 < sample_rate <= 1:
        raise ConfigError(f"The sampling rate is {sample_rate}; give a rate above 0 and at most 1.")
    if batch is not None and public_units is not None and batch > public_units:
        raise ConfigError(f"expected_batch_size is {batch}; give at most public_units = {public_units}.")


def _rate(batch: int | None, public_units: int | None, sample_rate: float | None) -> float | None:
    if sample_rate is not None:
        return sample_rate
    return None if batch is None or public_units is None else batch / public_units


def trade_off(
    *,
    public_units: int,
    delta: float,
    expected_batch_sizes: Iterable[int],
    steps: Iterable[int],
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
) -> list[TradeOff]:
    """Cost against steps for several batch sizes, as numbers: at one noise multiplier, or the noise at one epsilon.

    One of ``noise_multiplier`` (epsilon is computed) and ``epsilon`` (the noise multiplier is) must be given. On a
    coarse grid of the accountant: every epsilon is a sound upper bound, about 0.3 % above the tightest. Rows by batch
    size, then steps. Raises as :func:`solve`.
    """
    if (noise_multiplier is None) == (epsilon is None):
        raise ConfigError("A trade-off needs noise_multiplier or epsilon, and not both; give one of them.")
    counts = sorted(set(steps))
    if not counts:
        raise ConfigError("A trade-off needs at least one number of steps; give steps.")
    rows = []
    with accounting.session("pld"):
        for batch in sorted(set(expected_batch_sizes)):
            for count in counts:
                _check(epsilon, noise_multiplier, count, batch, public_units, None)
            q = batch / public_units
            for count in counts:
                sigma = noise_multiplier
                if sigma is None:
                    assert epsilon is not None
                    sigma = find_sigma(epsilon, q, count, delta, coarse=True)
                spent = accounting.upper_bound(q, sigma, count, delta, accounting.COARSE)[0]
                rows.append(TradeOff(batch, count, sigma, spent, sigma / batch))
    return rows
