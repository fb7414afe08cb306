"""What audits prove of a pure Gaussian mechanism of known mu when the attack is perfect: medians of shares of epsilon.

    python -m benchmarks.audit_power --json > docs/measurements/audit_power.json

Each cell is ``repeats`` audits under fixed seeds, each with the best score there is. ``above`` counts bounds above the
truth: 5 % of them would be no wonder. Two rows more are of subsampled training with every step seen.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dpeq.privacy import accounting
from dpeq.privacy.audit.curves import GaussianCurves, PairCurves, SubsampledGaussianCurves
from dpeq.privacy.audit.f_dp import audit_f_dp
from dpeq.privacy.audit.many_runs import audit_many_runs
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.gdp import gaussian_epsilon

DELTA = 1e-5
MUS = (0.5, 1.0, 2.0, 3.0)
RUNS = (500, 1000, 5000)
CANARIES = (200, 1000, 5000)
SUBSAMPLED = (0.1087, 1.0964, 200, 1e-4)  # rate, noise multiplier, steps, delta: epsilon 8 on PneumoniaMNIST

Shares = dict[str, float]


def many_runs(random: np.random.Generator, mu: float, runs: int, epsilon: float) -> Shares:
    """One audit of ``runs`` trainings with the canary and as many without."""
    scores = random.normal(mu, size=runs), random.normal(size=runs)
    return {
        family: audit_many_runs(*scores, curves, theoretical=epsilon).epsilon_lower / epsilon
        for family, curves in (("gaussian", GaussianCurves(DELTA)), ("pairs", PairCurves(DELTA)))
    }


def one_run(random: np.random.Generator, mu: float, canaries: int, epsilon: float) -> Shares:
    """One audit of one training with so many canaries."""
    included = random.random(canaries) < 0.5
    scores = random.normal(size=canaries) + mu * included
    return {
        "gaussian": audit_f_dp(scores, included, GaussianCurves(DELTA)).epsilon_lower / epsilon,
        "pairs": audit_one_run(scores, included, delta=DELTA).epsilon_lower / epsilon,
    }


def losses(random: np.random.Generator, rows: int, member: Any) -> np.ndarray:
    """Log-likelihood ratios of ``rows`` trainings by subsampled Gaussian steps, with or without the canary."""
    rate, sigma, steps, _ = SUBSAMPLED
    z = sigma * random.normal(size=(rows, steps)) + (member & (random.random((rows, steps)) < rate))
    return np.log1p(rate * np.expm1((2 * z - 1) / (2 * sigma**2))).sum(axis=1)


def subsampled_many_runs(random: np.random.Generator, runs: int, epsilon: float) -> Shares:
    rate, _, steps, delta = SUBSAMPLED
    scores = losses(random, runs, True), losses(random, runs, False)
    families = {
        "own": SubsampledGaussianCurves(delta, rate, steps),
        "gaussian": GaussianCurves(delta),
        "pairs": PairCurves(delta),
    }
    return {name: audit_many_runs(*scores, curves).epsilon_lower / epsilon for name, curves in families.items()}


def subsampled_one_run(random: np.random.Generator, canaries: int, epsilon: float) -> Shares:
    rate, _, steps, delta = SUBSAMPLED
    included = random.random(canaries) < 0.5
    scores = losses(random, canaries, included[:, None])
    own = SubsampledGaussianCurves(delta, rate, steps)
    return {
        "own": audit_f_dp(scores, included, own).epsilon_lower / epsilon,
        "pairs": audit_one_run(scores, included, delta=delta).epsilon_lower / epsilon,
    }


def cell(
    one_audit: Callable[[np.random.Generator], Shares], repeats: int, named: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each family of curves: the median share, its 5 % quantile, and how many lay above the truth."""
    random = np.random.default_rng(2)
    found = [one_audit(random) for _ in range(repeats)]
    rows = []
    for family in found[0]:
        shares = np.array([one[family] for one in found])
        rows.append(
            {
                **named,
                "family": family,
                "repeats": repeats,
                "share": round(float(np.median(shares)), 3),
                "share_5_percent": round(float(np.quantile(shares, 0.05)), 3),
                "above": int((shares > 1).sum()),
            }
        )
    return rows


def measure(repeats: int, subsampled_repeats: int) -> list[dict[str, Any]]:
    cells: list[tuple[Callable[[np.random.Generator], Shares], int, dict[str, Any]]] = []
    for mu in MUS:
        epsilon = gaussian_epsilon(mu, DELTA)
        for audit, amounts in ((many_runs, RUNS), (one_run, CANARIES)):
            for amount in amounts:
                cells.append(
                    (
                        lambda random, audit=audit, mu=mu, amount=amount, epsilon=epsilon: audit(
                            random, mu, amount, epsilon
                        ),
                        repeats,
                        {"audit": audit.__name__, "mu": mu, "epsilon": round(epsilon, 3), "amount": amount},
                    )
                )
    rate, sigma, steps, delta = SUBSAMPLED
    whole = accounting.epsilon_pld(rate, sigma, steps, delta)
    for audit in (subsampled_many_runs, subsampled_one_run):
        named = {"audit": audit.__name__, "mu": None, "epsilon": round(whole, 3), "amount": 2000}
        cells.append((lambda random, audit=audit: audit(random, 2000, whole), subsampled_repeats, named))
    return [
        row
        for audit, count, named in track(cells, "Auditing", console=Console(stderr=True))
        for row in cell(audit, count, named)
    ]


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("audit", "epsilon", "runs of a kind, or canaries", "curves", "share of epsilon", "5 %", "above")
    for row in rows:
        above = f"{row['above']} of {row['repeats']}"
        texts = (
            row["audit"],
            row["epsilon"],
            row["amount"],
            row["family"],
            row["share"],
            row["share_5_percent"],
            above,
        )
        table.add_row(*map(str, texts))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--subsampled-repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    begun = time.perf_counter()
    with accounting.session("pld"):
        rows = measure(asked.repeats, asked.subsampled_repeats)
    if asked.json:
        body = {"python": platform.python_version(), "seconds": round(time.perf_counter() - begun, 1), "rows": rows}
        print(json.dumps(body, indent=1))
    else:
        Console().print(_table(rows))


if __name__ == "__main__":
    main()
