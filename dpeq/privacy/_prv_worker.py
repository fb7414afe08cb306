"""Numerical accountants in a process of their own: ``python -m dpeq.privacy._prv_worker ROLE``.

An accountant may hang, warn, fail or import torch; in a process of its own a time-out really stops it, and the caller
stays light. ROLE is ``pld`` (dp-accounting, see :mod:`dpeq.privacy._pld`), ``prv`` (prv-accountant), ``rdp`` (Opacus'
Renyi analysis) or ``opacus`` (Opacus' PRV accountant): one role per process, so that each imports its own library
alone. Requests and answers are one JSON object per line: ``{"id": n, "op": name, "args": {...}}`` -> ``{"id": n,
"value": ...}`` or ``{"id": n, "error": "sentence"}``. The process ends when its standard input does, so it cannot
outlive its parent by more than one computation.

Throughout: ``q`` sampling rate, ``sigma`` noise multiplier, ``steps`` numbers of compositions, add/remove one unit; a
part is (q, sigma, steps).
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dpeq.privacy import _light

# The privacy loss is discretised on at most this many points: keeps one answer below a second and some 100 MiB.
MAX_POINTS = 500_000
# Both PRV implementations note that their domain rule is meant for errors well below 1.
MAX_EPS_ERROR = 0.5
# Opacus' log-binomials overflow beyond order 1029, so the largest Renyi order stays below it.
ALPHAS: tuple[float, ...] = (
    *(1.01, 1.03, 1.1, 1.25, 1.5, 1.75),  # the slowest to sum, and the best ones only where epsilon is very large
    *(1.0 + x / 4 for x in range(4, 40)),
    *(float(x) for x in range(11, 64)),
    *(float(x) for x in (72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 640, 768, 896, 1024)),
)

Json = Any
Part = tuple[float, float, int]


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


def prv(q: float, sigma: float, steps: list[int], max_steps: int, delta: float, precision: float) -> Json:
    """prv-accountant: [lower, estimate, upper] after each of ``steps``; one grid, made for ``max_steps``, for all.

    Its parts are put together here as its ``PRVAccountant`` does it, but for the mean of the privacy loss. That class
    integrates a distribution function that rises within a sliver above ln(1 - q); for q a little above 0.095 the
    quadrature steps over the sliver, the mean comes out too large, and the answer is either the error "Discrete mean
    differs" or, where it stays below half a mesh, an interval that misses the truth.
    """
    from prv_accountant import PoissonSubsampledGaussianMechanism
    from prv_accountant.composers import Heterogeneous
    from prv_accountant.discretisers import CellCentred
    from prv_accountant.domain import Domain
    from prv_accountant.other_accountants import RDP
    from prv_accountant.privacy_random_variables import PrivacyRandomVariableTruncated

    from dpeq.privacy._moments import loss_moments

    class Truncated(PrivacyRandomVariableTruncated):  # type: ignore[misc]  # the library has no types
        def mean(self) -> float:
            return loss_moments(q, sigma)[0]

    loss = PoissonSubsampledGaussianMechanism(sampling_probability=q, noise_multiplier=sigma)
    delta_error = delta / 1000
    renyi = RDP(prvs=[loss])
    scale = float(renyi.compute_epsilon(delta, [max_steps])[2])
    # Remark 5.6 of the paper, as in prv_accountant.accountant.compute_safe_domain_size.
    whole = float(renyi.compute_epsilon(delta_error / 4, [max_steps])[2])
    single = float(renyi.compute_epsilon(delta_error / 8 / max_steps, [1])[2])
    eps_error = choose_eps_error(precision, scale, max(whole, single) + 3, max_steps, delta_error)
    half = max(whole, single, eps_error) + 3
    domain = Domain.create_aligned(-half, half, eps_error / math.sqrt(max_steps / 2 * math.log(12 / delta_error)))
    discrete = CellCentred().discretise(Truncated(loss, domain.t_min(), domain.t_max()), domain)
    composer = Heterogeneous([discrete])
    bounds = []
    for n in steps:
        lower, estimate, upper = composer.compute_composition([n]).compute_epsilon(delta, delta_error, eps_error)
        bounds.append([float(lower), float(estimate), float(upper)])
    return {"bounds": bounds, "eps_error": eps_error, "rdp": scale}


@lru_cache(maxsize=64)
def _renyi(q: float, sigma: float) -> tuple[float, ...]:
    """Opacus' Renyi divergences of one step at ALPHAS; infinite where the series cannot be summed."""
    from opacus.accountants.analysis import rdp as analysis

    values = []
    for alpha in ALPHAS:
        try:
            value = float(analysis.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=alpha))
        except (ArithmeticError, ValueError):
            value = math.inf  # this order gives no bound; the others still do
        values.append(value if value >= 0 else math.inf)
    return tuple(values)


def renyi(parts: Sequence[Part]) -> Json:
    """[orders, divergences] of all ``parts`` together, where finite (Mironov, Talwar, Zhang 2019, arXiv 1908.10530)."""
    total = [0.0] * len(ALPHAS)
    for q, sigma, steps in parts:
        total = [a + steps * b for a, b in zip(total, _renyi(q, sigma), strict=True)]
    finite = [(alpha, value) for alpha, value in zip(ALPHAS, total, strict=True) if math.isfinite(value)]
    return [[alpha for alpha, _ in finite], [value for _, value in finite]]


def renyi_epsilon(parts: Sequence[Part], delta: float) -> float:
    """Opacus' Renyi bound on all ``parts`` (conversion: Balle et al. 2020, arXiv 1905.09982, Theorem 21)."""
    from opacus.accountants.analysis import rdp as analysis

    orders, divergences = renyi(parts)
    if not orders:
        return math.inf
    # An optimum at the border of the grid (Opacus warns) is a valid bound, only a looser one.
    epsilon, _ = analysis.get_privacy_spent(orders=orders, rdp=divergences, delta=delta)
    return max(0.0, float(epsilon))


def renyi_epsilons(q: float, sigma: float, steps: list[int], delta: float) -> Json:
    """:func:`renyi_epsilon` of one part after each of ``steps``."""
    return [renyi_epsilon([(q, sigma, n)], delta) for n in steps]


def opacus_prv(q: float, sigma: float, steps: list[int], max_steps: int, delta: float, precision: float) -> Json:
    """Opacus' PRV accountant after each of ``steps``.

    ``PRVAccountant.get_epsilon`` returns the third of (lower, estimate, upper): epsilon at ``delta - delta_error``
    plus ``eps_error``, so both errors of the method are inside the number.
    """
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size
    from opacus.accountants.prv import PRVAccountant

    delta_error = delta / 1000
    scale = renyi_epsilon([(q, sigma, max_steps)], delta)
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


def _operations(role: str) -> dict[str, Callable[..., Json]]:
    """The operations of ``role``; imports its library, so that the first question does not wait for it."""
    if role == "pld":
        _light.dp_accounting()
        from dpeq.privacy import _pld, _profile

        return {
            "epsilon": _pld.epsilon,
            "curve": _pld.curve,
            "deltas": _pld.deltas_at,
            "mu": _pld.mu,
            "profile": _profile.profile,
        }
    if role == "prv":
        _light.prv_accountant()
        return {"prv": prv}
    if role == "rdp":
        _light.opacus_analysis()
        return {"renyi": renyi, "epsilon": renyi_epsilon, "epsilons": renyi_epsilons}
    if role == "opacus":
        _light.opacus_prv()
        return {"prv": opacus_prv}
    raise SystemExit(f"there is no accountant {role}")


def main(role: str) -> None:
    """Answers requests until standard input ends."""
    # Warnings of third-party numerics mean nothing here: every answer is judged by its reader.
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # nothing a library prints may reach the channel
    operations = _operations(role)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": operations[request["op"]](**request["args"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps({"id": request["id"], **reply}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
