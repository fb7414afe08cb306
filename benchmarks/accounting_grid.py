"""Walks a grid of settings and asks every accountant: who answers, how far apart they are, and what must always hold.

    python -m benchmarks.accounting_grid --json > docs/measurements/accounting_grid.json
    python -m benchmarks.accounting_grid --sample 40

Held at every point: some accountant answers; no lower bound lies above an upper one; dp-accounting's and
prv-accountant's upper bounds lie below Renyi's, up to their stated errors; epsilon falls with sigma and delta and rises
with q and T; without subsampling, and for a single step, it is the closed form, from above. ``--sample`` draws that
many points and their neighbours. Takes about half an hour as a whole.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table

from dpeq.privacy import accounting
from dpeq.privacy._session import AccountingError, ask
from dpeq.privacy.gdp import gaussian_epsilon

SIGMAS = (0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
RATES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
STEPS = (1, 10, 100, 1000, 10_000, 100_000)
DELTAS = (1e-8, 1e-5, 1e-3)
AXES = (RATES, SIGMAS, STEPS, DELTAS)
RISES = (True, False, True, False)  # epsilon with q, sigma, steps, delta

_SLACK = 1e-6  # absolute: below that an epsilon is nothing
Point = tuple[float, float, int, float]


def subsampled_delta(q: float, sigma: float, epsilon: float) -> float:
    """delta of one step at ``epsilon`` >= 0, in closed form: the larger of removing and adding a unit."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def cut(ratio: float) -> float:  # where the mixture's density is ``ratio`` times that without the unit
        return sigma * math.log((ratio - (1 - q)) / q) + 0.5 / sigma

    x = cut(math.exp(epsilon))
    remove = (1 - q) * phi(-x) + q * phi(1 / sigma - x) - math.exp(epsilon) * phi(-x)
    add = 0.0
    if q == 1.0 or math.exp(-epsilon) > 1 - q:
        x = cut(math.exp(-epsilon))
        add = phi(x) - math.exp(epsilon) * ((1 - q) * phi(x) + q * phi(x - 1 / sigma))
    return max(remove, add)


def single_step(q: float, sigma: float, delta: float) -> float:
    """Epsilon of one step in closed form."""
    if subsampled_delta(q, sigma, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while subsampled_delta(q, sigma, high) > delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if subsampled_delta(q, sigma, middle) <= delta else (middle, high)
    return high


@dataclass
class Answer:
    """What was said of one point."""

    by: str
    epsilon: float
    add: float | None  # epsilon of adding alone, and of removing alone
    remove: float | None
    comparison: accounting.Comparison
    seconds: float


@dataclass
class Walk:
    """Answers so far, and every rule that was broken, in words."""

    answers: dict[Point, Answer] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def ask(self, point: Point) -> Answer:
        if point not in self.answers:
            self.answers[point] = self._asked(point)
        return self.answers[point]

    def _asked(self, point: Point) -> Answer:
        q, sigma, steps, delta = point
        started = time.perf_counter()
        epsilon, by, _ = accounting.upper_bound(*point)
        seconds = time.perf_counter() - started
        both: dict[str, float] = {}
        if by == "pld":
            both = ask("pld", "epsilon", parts=[[q, sigma, steps]], delta=delta, precision=accounting.PRECISION)
        comparison = accounting.compare(*point)
        answer = Answer(by, epsilon, both.get("add"), both.get("remove"), comparison, seconds)
        self._hold(point, answer)
        return answer

    def _hold(self, point: Point, answer: Answer) -> None:
        q, sigma, steps, delta = point
        said = answer.comparison.epsilon
        if answer.comparison.contradiction:
            self.broken.append(f"{point}: {answer.comparison.contradiction}")
        room = 2 * accounting.PRECISION
        if "pld" in said and not said["pld"] <= said["rdp"] * (1 + room) + _SLACK:
            self.broken.append(f"{point}: pld {said['pld']} above rdp {said['rdp']}")
        if "prv_upper" in said:
            stated = said["prv_upper"] - said["prv_lower"]
            if not said["prv_upper"] <= said["rdp"] + stated + _SLACK:
                self.broken.append(f"{point}: prv {said['prv_upper']} above rdp {said['rdp']} by more than {stated}")
        if answer.by == "pld" and answer.epsilon != max(answer.add or 0.0, answer.remove or 0.0):
            self.broken.append(f"{point}: the larger direction is not what is reported")
        if q == 1.0:
            self._closed_form(point, answer, gaussian_epsilon(math.sqrt(steps) / sigma, delta))
        elif steps == 1:
            self._closed_form(point, answer, single_step(q, sigma, delta))

    def _closed_form(self, point: Point, answer: Answer, exact: float) -> None:
        if not exact * (1 - 1e-9) <= answer.epsilon:
            self.broken.append(f"{point}: {answer.by} {answer.epsilon} below the closed form {exact}")
        # Beyond 700 exp(-epsilon) leaves the doubles, and the library answers with a loss of its grid.
        room = 4 * accounting.PRECISION if exact < 700 else 0.01
        if answer.by == "pld" and not answer.epsilon <= exact * (1 + room) + _SLACK:
            self.broken.append(f"{point}: pld {answer.epsilon} far above the closed form {exact}")

    def compare_neighbours(self) -> None:
        """Monotone along every axis, between points that were asked."""
        for point, answer in list(self.answers.items()):
            for axis, (values, rises) in enumerate(zip(AXES, RISES, strict=True)):
                index = values.index(point[axis]) + 1
                if index == len(values):
                    continue
                other = self.answers.get((*point[:axis], values[index], *point[axis + 1 :]))  # type: ignore[arg-type]
                if other is None or (answer.by, other.by) != ("pld", "pld"):
                    continue
                low, high = (answer, other) if rises else (other, answer)
                if not low.epsilon <= high.epsilon * (1 + 2 * accounting.PRECISION) + _SLACK:
                    self.broken.append(f"{point}: not monotone along {('q', 'sigma', 'steps', 'delta')[axis]}")

    def summary(self) -> dict[str, Any]:
        said = [answer.comparison for answer in self.answers.values()]
        gaps = [c.gap / c.epsilon["pld"] for c in said if c.gap is not None and c.epsilon.get("pld", 0) > 0.01]
        renyi = [c.epsilon["rdp"] / c.epsilon["pld"] for c in said if c.epsilon.get("pld", 0) > 0.01]
        times = sorted(answer.seconds for answer in self.answers.values())
        adding = {
            str(point): round(a.add / a.remove - 1, 9)
            for point, a in self.answers.items()
            if a.add is not None and a.remove is not None and a.add > a.remove > 0
        }
        reasons = Counter(
            f"{name}: {re.sub(r'[-+0-9.e]*[0-9]+', 'x', why)}" for c in said for name, why in c.missing.items()
        )
        return {
            "points": len(self.answers),
            "answered_by": dict(Counter(answer.by for answer in self.answers.values())),
            "missing": dict(Counter(name for c in said for name in c.missing)),
            "reasons": dict(reasons),
            "answered_by_another": {str(p): a.by for p, a in self.answers.items() if a.by != "pld"},
            "adding_costs_more_than_removing_by": adding,
            "gap_to_lower_bound_percent": _spread([100 * g for g in gaps]),
            "renyi_over_pld": _spread(renyi),
            "seconds_of_upper_bound": _spread(times),
            "broken": self.broken,
        }


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {
        "median": round(ordered[len(ordered) // 2], 4),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 4),
        "largest": round(ordered[-1], 4),
    }


def whole() -> list[Point]:
    """Every point of the grid."""
    return list(product(*AXES))


def sampled(count: int, seed: int = 0) -> list[Point]:
    """``count`` points and, for each, its neighbour along an axis that takes turns."""
    chosen = random.Random(seed).sample(whole(), count)
    result = []
    for number, point in enumerate(chosen):
        axis = number % 4
        values: tuple[Any, ...] = AXES[axis]
        index = values.index(point[axis])
        other = values[index + 1 if index + 1 < len(values) else index - 1]
        result += [point, (*point[:axis], other, *point[axis + 1 :])]
    return result  # type: ignore[return-value]


def walk(points: list[Point], progress: Any = None) -> Walk:
    """Asks at every point and compares; :class:`AccountingError` at a point becomes a broken rule."""
    result = Walk()
    with accounting.session("pld", "prv", "rdp"):
        for number, point in enumerate(points):
            try:
                result.ask(point)
            except AccountingError as error:
                result.broken.append(f"{point}: nobody answers ({error})")
            if progress is not None:
                progress(number + 1, len(points))
    result.compare_neighbours()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Every accountant on a grid of settings.")
    parser.add_argument("--sample", type=int, help="so many points instead of all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True)
    points = whole() if options.sample is None else sampled(options.sample)
    started = time.perf_counter()

    def progress(done: int, total: int) -> None:
        if done % 50 == 0:
            console.print(f"{done} of {total}, {time.perf_counter() - started:.0f} s")

    result = walk(points, progress).summary()
    if options.json:
        device = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        print(json.dumps({"device": device, "rows": [result]}, indent=1))
        return
    table = Table(show_header=False)
    for name, value in result.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
