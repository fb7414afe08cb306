"""dp-accounting's privacy loss distributions, asked so that every answer is an upper bound; runs in a child process.

The loss of one step is rounded pessimistically to a grid ("connect the dots", Doroshenko, Ghazi, Kamath, Kumar,
Manurangsi 2022, arXiv 2207.04380), in both directions of add/remove: neither is known to dominate the other under
composition (Lebeda, Regehr, Kamath, Steinke 2024, arXiv 2405.20769). A coarser grid gives a larger epsilon and never a
smaller one, so the mesh is free to be as coarse as the wanted precision allows. What floating point could hide is taken
off delta before epsilon is read off: see :func:`_allowance`.

A part is (q, sigma, steps): sampling rate, noise multiplier, number of Poisson-subsampled Gaussian steps. A group of
k units that are sampled one by one moves the sum by a binomial number of clipping norms; that mixture of Gaussians
dominates whatever their gradients are (Ganesh 2024, arXiv 2401.10294).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import privacy_loss_distribution
from scipy.special import gammaln, log_ndtr, ndtr

from dpeq.privacy._moments import loss_moments

Json = Any
Part = tuple[float, float, int]
Profile = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

UNIT_ROUNDOFF = 2.0**-53
# Bounds time and memory: longest grid of one step, and of all.
MAX_STEP_POINTS, MAX_POINTS = 100_000, 1_500_000


class Composed(NamedTuple):
    """A privacy loss distribution of everything together, its mesh, and what rounding may hide of delta."""

    distribution: Any  # dp_accounting's PrivacyLossDistribution
    interval: float
    allowance: float

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 that is sound at ``delta``, over both directions."""
        if not self.allowance <= 0.9 * delta:
            raise ValueError(f"rounding may hide {self.allowance:.2g} of delta {delta:g}")
        return float(self.distribution.get_epsilon_for_delta(delta - self.allowance))


def _single(q: float, sigma: float, interval: float, group: int) -> Any:
    if group == 1:
        return privacy_loss_distribution.from_gaussian_mechanism(
            sigma, value_discretization_interval=interval, sampling_prob=q, use_connect_dots=True
        )
    if q == 1.0:  # k norms at once, always
        return privacy_loss_distribution.from_gaussian_mechanism(
            sigma, sensitivity=group, value_discretization_interval=interval, use_connect_dots=True
        )
    k = np.arange(group + 1)
    log_probability = gammaln(group + 1) - gammaln(k + 1) - gammaln(group - k + 1)
    log_probability += k * math.log(q) + (group - k) * math.log1p(-q)
    probability = np.exp(log_probability)
    probability /= probability.sum()
    return privacy_loss_distribution.from_mixture_gaussian_mechanism(
        sigma, [float(x) for x in k], [float(p) for p in probability], value_discretization_interval=interval
    )


def _width(q: float, sigma: float, group: int) -> float:
    """About how far the loss of one step reaches: where its tail has exp(-50), as dp-accounting cuts it."""
    largest = group * 10.5 / sigma + group * group / (2 * sigma * sigma)
    if q == 1.0:
        return 2 * largest
    hit = -math.expm1(group * math.log1p(-q))  # at least one of the group was sampled
    return float(np.logaddexp(math.log1p(-hit), math.log(hit) + largest)) - math.log1p(-hit)


def _allowance(distribution: Any, steps: int) -> float:
    """What may be missing from the computed delta: 16 roundings per step, and all probability that went astray.

    The hockey-stick divergence of one step is accurate to a few units of rounding (2.3 at most on a test's grid,
    against 60 digits), the power of its Fourier transform to about pi per step. Composing adds these up: steps times
    16 covers both. Rounding that takes mass away shows in the total, and is counted whole as if it were all loss.
    """
    missing = 0.0
    for pmf in (distribution._pmf_remove, distribution._pmf_add):
        missing = max(missing, 1.0 - float(pmf.get_delta_for_epsilon(-math.inf)))  # at -inf delta is the total mass
    return 16 * UNIT_ROUNDOFF * steps + missing


def _at(parts: Sequence[Part], interval: float, groups: Sequence[int]) -> Composed:
    total: Any = None
    for (q, sigma, steps), group in zip(parts, groups, strict=True):
        part = _single(q, sigma, interval, group).self_compose(steps)
        total = part if total is None else total.compose(part)
    return Composed(total, interval, _allowance(total, sum(steps for _, _, steps in parts)))


def compose(parts: Sequence[Part], delta: float, precision: float, group: int | Sequence[int] = 1) -> Composed:
    """As :func:`_compose`, for a group of one size, or of one size per part.

    The last few answers are kept, since one plan is asked for epsilon and then for mu.
    """
    groups = (group,) * len(parts) if isinstance(group, int) else tuple(group)
    return _compose(tuple((float(q), float(sigma), int(n)) for q, sigma, n in parts), delta, precision, groups)


@lru_cache(maxsize=2)
def _compose(parts: tuple[Part, ...], delta: float, precision: float, groups: tuple[int, ...]) -> Composed:
    """Everything together on a grid whose rounding costs at most about ``precision`` times epsilon at ``delta``.

    Pessimistic rounding to a mesh h adds some h^2 / 4 to the variance of a step's loss. The first mesh makes that small
    beside the loss's own variance; a mesh half as wide shows what is left of it (the error falls with h^2, so the finer
    mesh errs by a third of the difference), and decides whether a finer one is needed. Halts at the longest grids.
    """
    steps = sum(n for _, _, n in parts)
    sized = [(q, sigma, n, group) for (q, sigma, n), group in zip(parts, groups, strict=True)]
    width = max(_width(q, sigma, group) for q, sigma, _, group in sized)
    if not math.isfinite(width) or width > 1e6:
        raise ValueError(f"the loss of one step spans {width:.3g}, too wide for a grid")
    deviation = math.sqrt(sum(n * loss_moments(q, sigma / group)[1] for q, sigma, n, group in sized) / steps)
    shortest = width / MAX_STEP_POINTS
    interval = max(min(5 * math.sqrt(precision) * deviation, width / 20), shortest)
    composed = _at(parts, interval, groups)
    before = composed.epsilon(delta)
    finer = max(interval / 2, shortest)
    for _ in range(8):
        points = max(composed.distribution._pmf_remove.size, composed.distribution._pmf_add.size)
        finer = max(finer, shortest, composed.interval * points / MAX_POINTS)
        if before == 0.0 or not math.isfinite(before) or finer > 0.9 * composed.interval:
            break
        ratio = (finer / composed.interval) ** 2
        composed = _at(parts, finer, groups)
        after = composed.epsilon(delta)
        error = max(before - after, 0.0) * ratio / (1 - ratio)
        allowed = max(precision * after, 1e-7)
        if error <= allowed:
            break
        before, finer = after, finer * min(max(0.8 * math.sqrt(allowed / error), 1 / 8), 1 / 2)
    return composed


def fit_mu(profile: Profile, epsilon_max: float, points: int = 4000) -> float:
    """Smallest mu (rounded up to 1e-6) whose Gaussian privacy profile lies above ``profile`` on [0, epsilon_max].

    delta_mu(eps) = Phi(-eps/mu + mu/2) - exp(eps) Phi(-eps/mu - mu/2). Both profiles decrease in epsilon, so asking
    delta_mu(eps[i+1]) >= profile(eps[i]) on a grid proves delta_mu >= profile between the grid points too.
    """
    grid = np.linspace(0.0, epsilon_max, points + 1)
    needed = profile(grid)[:-1]
    right = grid[1:]

    def dominates(mu: float) -> bool:
        gaussian = ndtr(-right / mu + mu / 2) - np.exp(right + log_ndtr(-right / mu - mu / 2))
        return bool((gaussian >= needed).all())

    low, high = 1e-4, 1.0
    while not dominates(high):
        low, high = high, 2 * high
        if high > 1e4:
            raise ValueError("no mu below 1e4 dominates the privacy profile")
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if dominates(middle) else (middle, high)
    return math.ceil(high * 1e6) / 1e6


def epsilon(parts: Sequence[Part], delta: float, precision: float, group: int | Sequence[int] = 1) -> Json:
    """Sound epsilon at ``delta`` of all ``parts`` for a group of units, and of either direction alone."""
    composed = compose(parts, delta, precision, group)
    value = composed.epsilon(delta)
    distribution, left = composed.distribution, delta - composed.allowance
    return {
        "epsilon": value,
        "remove": float(distribution._pmf_remove.get_epsilon_for_delta(left)),
        "add": float(distribution._pmf_add.get_epsilon_for_delta(left)),
        "interval": composed.interval,
    }


def curve(q: float, sigma: float, steps: list[int], max_steps: int, delta: float, precision: float) -> Json:
    """Sound epsilon after each of ``steps``, on the one mesh that suits ``max_steps``."""
    interval = compose([(q, sigma, max_steps)], delta, precision).interval
    single = _single(q, sigma, interval, 1)
    result = []
    for n in steps:
        distribution = single.self_compose(n)
        result.append(Composed(distribution, interval, _allowance(distribution, n)).epsilon(delta))
    return result


def mu(parts: Sequence[Part], delta: float, floor: float, precision: float) -> Json:
    """The mu that dominates the profile of all ``parts`` wherever their delta is at least ``floor``; None without one.

    ``delta`` only chooses the mesh.
    """
    composed = compose(parts, delta, precision)
    distribution, allowance = composed.distribution, composed.allowance
    epsilon_max = composed.epsilon(floor)
    if not epsilon_max <= 600:  # exp(epsilon) must stay a finite double
        raise ValueError(f"epsilon at delta {floor:g} is {epsilon_max:.3g}, too large for a fit of mu")

    def profile(grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.maximum(deltas(distribution._pmf_remove, grid), deltas(distribution._pmf_add, grid)) + allowance

    return fit_mu(profile, max(epsilon_max, 1e-3))


def deltas_at(parts: Sequence[Part], epsilons: Sequence[float], delta: float, precision: float) -> Json:
    """Sound delta of all ``parts`` at each of ``epsilons``, over both directions; ``delta`` only chooses the mesh."""
    composed = compose(parts, delta, precision)
    order = np.argsort(epsilons)
    grid = np.asarray(epsilons, dtype=np.float64)[order]
    distribution = composed.distribution
    both = np.maximum(deltas(distribution._pmf_remove, grid), deltas(distribution._pmf_add, grid))
    result = np.empty_like(both)
    result[order] = np.clip(both + composed.allowance, 0.0, 1.0)
    return result.tolist()


def deltas(pmf: Any, epsilons: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hockey-stick divergences at rising ``epsilons``; dp-accounting's own does this in a loop and takes seconds."""
    pmf = pmf.to_dense_pmf()
    losses = (np.arange(pmf.size) + pmf._lower_loss) * pmf._discretization
    upper = np.append(np.cumsum(pmf._probs[::-1])[::-1], 0.0) + pmf._infinity_mass
    with np.errstate(over="ignore"):  # only where no epsilon of ours reaches
        lower = np.append(np.cumsum((pmf._probs * np.exp(-np.maximum(losses, -700)))[::-1])[::-1], 0.0)
    first = np.searchsorted(losses, epsilons, side="right")
    return np.asarray(upper[first] - np.exp(epsilons) * lower[first], dtype=np.float64)
