"""Numerical accountants in a process of their own: ``python -m dpeq.privacy._prv_worker ROLE``.

An accountant may hang, warn, fail or (Opacus) import torch; in a process of its own a time-out really stops it, and the
caller stays light. ROLE is ``prv`` (prv-accountant), ``opacus`` or ``pld`` (dp-accounting): one role per process, so
that each imports its own library alone. Requests and answers are one JSON object per line:
``{"op": name, "args": {...}}`` -> ``{"value": ...}`` or ``{"error": "sentence"}``. The process ends when its standard
input does, so it cannot outlive its parent by more than one computation.

Throughout: ``q`` sampling rate, ``sigma`` noise multiplier, ``steps`` numbers of compositions, add/remove one unit.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

# The privacy loss is discretised on at most this many points: keeps one answer below a few seconds and some 100 MiB.
MAX_POINTS = 500_000
# Both PRV implementations note that their domain rule is meant for errors well below 1.
MAX_EPS_ERROR = 0.5
# Opacus' log-binomials overflow beyond order 1029, so the largest Renyi order stays below it.
ALPHAS: tuple[float, ...] = (
    *(1.0 + x / 100 for x in range(1, 10)),
    *(1.0 + x / 10 for x in range(1, 100)),
    *(float(x) for x in range(11, 64)),
    *(float(x) for x in (72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 640, 768, 896, 1024)),
)

Json = Any
Profile = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def choose_eps_error(precision: float, scale: float, domain: float, steps: int, delta_error: float) -> float:
    """Error allowed in epsilon: ``precision`` times ``scale`` (a bound on epsilon), more where the grid gets too long.

    ``domain`` is the half-width of the grid; its mesh is eps_error / sqrt(steps / 2 * log(12 / delta_error))
    (Gopi, Lee, Wutschitz 2021, arXiv 2106.02848, Theorem 5.5).
    """
    wanted = min(max(precision * scale, 1e-5), 0.1)
    shortest = 2 * domain * math.sqrt(steps / 2 * math.log(12 / delta_error)) / MAX_POINTS
    error = max(wanted, shortest)
    if not error <= MAX_EPS_ERROR:
        raise ValueError(f"the privacy loss spans {2 * domain:.3g}, too wide for a grid of {MAX_POINTS} points")
    return float(error)


def solve_sigma(epsilon: float, evaluate: Callable[[float], float]) -> float:
    """A sigma at which ``evaluate`` (decreasing) is at most ``epsilon``, within 0.1 %, by bisection in log sigma."""
    low, high = 1e-2, 1.0
    while not evaluate(high) <= epsilon:
        low, high = high, 2 * high
        if high > 1e7:
            raise ValueError(f"no noise multiplier below 1e7 reaches epsilon {epsilon}")
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if evaluate(middle) <= epsilon else (middle, high)
    return high


def prv(q: float, sigma: float, steps: list[int], max_steps: int, delta: float, precision: float) -> Json:
    """prv-accountant: [lower, estimate, upper] after each of ``steps``; one grid, made for ``max_steps``, for all."""
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant
    from prv_accountant.accountant import compute_safe_domain_size
    from prv_accountant.other_accountants import RDP

    loss = PoissonSubsampledGaussianMechanism(sampling_probability=q, noise_multiplier=sigma)
    delta_error = delta / 1000
    scale = RDP(prvs=[loss]).compute_epsilon(delta, [max_steps])[2]
    domain = float(compute_safe_domain_size([loss], [max_steps], 0.0, delta_error))
    eps_error = choose_eps_error(precision, scale, domain, max_steps, delta_error)
    accountant = PRVAccountant(loss, eps_error=eps_error, delta_error=delta_error, max_self_compositions=max_steps)
    bounds = [[float(x) for x in accountant.compute_epsilon(delta, [n])] for n in steps]
    return {"bounds": bounds, "eps_error": eps_error, "rdp": float(scale)}


def prv_sigma(q: float, steps: int, delta: float, epsilon: float) -> Json:
    """A sigma whose Renyi bound (prv-accountant's own) meets ``epsilon``: the start of a calibration."""
    from prv_accountant import PoissonSubsampledGaussianMechanism
    from prv_accountant.other_accountants import RDP

    # A coarse grid of orders is enough for a starting point, and every order costs a bisection step its time.
    orders = [1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64]

    def evaluate(sigma: float) -> float:
        loss = PoissonSubsampledGaussianMechanism(sampling_probability=q, noise_multiplier=sigma)
        return float(RDP(prvs=[loss], orders=orders).compute_epsilon(delta, [steps])[2])

    return solve_sigma(epsilon, evaluate)


def _opacus_rdp(q: float, sigma: float, delta: float) -> Callable[[int], float]:
    from opacus.accountants.analysis import rdp as analysis

    orders: list[float] = []
    per_step: list[float] = []
    for alpha in ALPHAS:
        try:
            value = float(analysis.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=alpha))
        except (ArithmeticError, ValueError):
            continue  # an order at which the series cannot be summed gives no bound; the others still do
        if math.isfinite(value) and value >= 0:
            orders.append(alpha)
            per_step.append(value)
    if not orders:
        return lambda steps: math.inf

    def evaluate(steps: int) -> float:
        # An optimum at the border of the grid (Opacus warns) is a valid bound, only a looser one.
        epsilon, _ = analysis.get_privacy_spent(orders=orders, rdp=[steps * r for r in per_step], delta=delta)
        return max(0.0, float(epsilon))

    return evaluate


def opacus_rdp(q: float, sigma: float, steps: list[int], delta: float) -> Json:
    """Opacus' Renyi accountant after each of ``steps`` (an upper bound; Mironov et al. 2019, Balle et al. 2020)."""
    evaluate = _opacus_rdp(q, sigma, delta)
    return [evaluate(n) for n in steps]


def opacus_sigma(q: float, steps: int, delta: float, epsilon: float) -> Json:
    """A sigma whose Opacus Renyi bound meets ``epsilon``."""
    return solve_sigma(epsilon, lambda sigma: _opacus_rdp(q, sigma, delta)(steps))


def opacus_prv(q: float, sigma: float, steps: list[int], max_steps: int, delta: float, precision: float) -> Json:
    """Opacus' PRV accountant after each of ``steps``.

    ``PRVAccountant.get_epsilon`` returns the third of (lower, estimate, upper): epsilon at ``delta - delta_error``
    plus ``eps_error``, so both errors of the method are inside the number.
    """
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size

    delta_error = delta / 1000
    scale = _opacus_rdp(q, sigma, delta)(max_steps)
    domain = float(compute_safe_domain_size([PoissonSubsampledGaussianPRV(q, sigma)], [max_steps], 0.0, delta_error))
    eps_error = choose_eps_error(precision, scale, domain, max_steps, delta_error)
    # Opacus convolves in double precision, whose rounding must stay below the error granted in delta.
    if np.finfo(np.float64).eps * MAX_POINTS > delta_error:
        raise ValueError(f"delta {delta} is too small for double precision")
    result = []
    for n in steps:
        accountant = PRVAccountant()
        accountant.history = [(sigma, q, n)]
        result.append(float(accountant.get_epsilon(delta, eps_error=eps_error, delta_error=delta_error)))
    return {"upper": result, "rdp": scale, "eps_error": eps_error}


def fit_mu(profile: Profile, epsilon_max: float, points: int = 4000) -> float:
    """Smallest mu (rounded up to 1e-6) whose Gaussian privacy profile lies above ``profile`` on [0, epsilon_max].

    delta_mu(eps) = Phi(-eps/mu + mu/2) - exp(eps) Phi(-eps/mu - mu/2). Both profiles decrease in epsilon, so asking
    delta_mu(eps[i+1]) >= profile(eps[i]) on a grid proves delta_mu >= profile between the grid points too.
    """
    from scipy.special import log_ndtr, ndtr

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


def pld(q: float, sigma: float, steps: int, delta: float, scale: float, floor: float) -> Json:
    """dp-accounting: pessimistic epsilon at ``delta`` and the mu that dominates its profile down to delta = ``floor``.

    The privacy loss distribution is rounded pessimistically ("connect the dots", Doroshenko et al. 2022, arXiv
    2207.04380) and covers both directions of add/remove. ``scale`` (some bound on epsilon) keeps the grid short.
    """
    from dp_accounting.pld import privacy_loss_distribution

    interval = max(min(0.02 / math.sqrt(steps), scale / 500), scale / 5e4)
    single = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, value_discretization_interval=interval, sampling_prob=q, use_connect_dots=True
    )
    composed = single.self_compose(steps)
    epsilon = float(composed.get_epsilon_for_delta(delta))
    epsilon_max = float(composed.get_epsilon_for_delta(floor))
    if not epsilon_max <= 600:  # exp(epsilon) must stay a finite double
        return {"epsilon": epsilon, "mu": None}

    def profile(grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(composed.get_delta_for_epsilon(grid), dtype=np.float64)

    try:
        return {"epsilon": epsilon, "mu": fit_mu(profile, max(epsilon_max, 1e-3))}
    except ValueError:  # no reasonable mu: epsilon stands all the same
        return {"epsilon": epsilon, "mu": None}


ROLES: dict[str, dict[str, Callable[..., Json]]] = {
    "prv": {"prv": prv, "sigma": prv_sigma},
    "opacus": {"prv": opacus_prv, "rdp": opacus_rdp, "sigma": opacus_sigma},
    "pld": {"pld": pld},
}


def main(role: str) -> None:
    """Answers requests until standard input ends."""
    # Warnings of third-party numerics mean nothing here: every answer is judged by its reader.
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # nothing a library prints may reach the channel
    operations = ROLES[role]
    if role == "opacus":
        import opacus.accountants  # noqa: F401  (slow: imports torch; done while the caller still works elsewhere)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": operations[request["op"]](**request["args"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
