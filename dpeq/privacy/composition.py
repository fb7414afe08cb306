"""What several runs on the same data cost together, and what one run costs a group of units.

Runs may differ in every constant: their privacy loss distributions are composed on one grid, rounded upwards
(:mod:`dpeq.privacy._pld`). The bound holds when each run's constants were fixed before the first run, whatever the
later runs saw of the earlier ones' models. Where a later run's noise, rate or steps were *chosen* after looking at an
earlier result, only a Renyi total that was fixed in advance and is at least the Renyi figure given beside may be quoted
(Feldman, Zrnic 2021, arXiv 2008.11193: Renyi filters); the sum that came out proves nothing by itself.

A group of k units that are sampled one by one, as the k images of a patient are in an image-level run, moves each step
by a binomial number of clipping norms, and the composed mixture of Gaussians is tight for it (Ganesh 2024, arXiv
2401.10294). Nothing smaller may be claimed for a patient on the ground of an image-level epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy._session import AccountingError, ask
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.plan import PrivacyPlan

__all__ = [
    "AUDIT_LEDGER",
    "Part",
    "RunSpent",
    "Total",
    "compose",
    "compose_ledgers",
    "group_by_definition",
    "group_epsilon",
    "read_spent",
]

AUDIT_LEDGER = "audit-ledger.jsonl"
"""The ledger of a training for an audit. Runs have another name: no summary may take it for one to be released."""


class Part(NamedTuple):
    """``steps`` Poisson-subsampled Gaussian steps: rate per unit, noise in clipping norms."""

    sample_rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class Total:
    """The loss of everything together at ``delta``: ``epsilon`` is a sound upper bound by ``accountant``.

    ``rdp`` is Opacus' Renyi bound on the same, where it was asked: for single units. ``group`` is how many units it
    speaks for, every size that occurs. ``note`` says why dp-accounting's bound is not the one given.
    """

    epsilon: float
    delta: float
    accountant: str
    note: str | None
    rdp: float | None
    group: tuple[int, ...]


@dataclass(frozen=True)
class RunSpent:
    """What one ledger says: the run's plan and how many of its steps were spent, a torn line counted as one."""

    path: Path
    plan: PrivacyPlan
    steps: int


def compose(parts: Sequence[Part], delta: float, group: int | Sequence[int] = 1) -> Total:
    """All ``parts`` together, for one unit or for a ``group`` of so many (one size for all, or one per part).

    Parts of equal constants count as one with the sum of their steps. Raises :class:`ConfigError` for impossible
    numbers, :class:`~dpeq.privacy.accounting.AccountingError` when no accountant has a bound.
    """
    sizes = [group] * len(parts) if isinstance(group, int) else list(group)
    if len(sizes) != len(parts):
        raise ConfigError(f"There are {len(sizes)} group sizes for {len(parts)} runs; give one size, or one per run.")
    merged: dict[tuple[float, float, int], int] = {}
    for (q, sigma, steps), size in zip(parts, sizes, strict=True):
        accounting.check_setting(q, sigma, steps, delta)
        _check_size(size)
        if steps:
            merged[float(q), float(sigma), size] = merged.get((float(q), float(sigma), size), 0) + steps
    accounting.check_setting(1.0, 1.0, 1, delta)  # delta, where there is no part
    sizes_used = tuple(sorted({size for _, _, size in merged})) or (1,)
    if not merged:
        return Total(0.0, delta, "none", None, 0.0, sizes_used)
    if any(sigma == 0 for _, sigma, _ in merged):
        return Total(math.inf, delta, "none", "A run without noise is not private.", math.inf, sizes_used)
    ordered = sorted(merged.items())
    whole = [[q, sigma, steps] for (q, sigma, _), steps in ordered]
    with accounting.session("pld", "rdp"):
        rdp = _renyi(whole, delta) if sizes_used == (1,) else None
        try:
            groups = [size for (_, _, size), _ in ordered]
            answer = ask("pld", "epsilon", parts=whole, delta=delta, precision=accounting.PRECISION, group=groups)
            epsilon = float(answer["epsilon"])
            if not (math.isfinite(epsilon) and epsilon >= 0):
                raise AccountingError(f"dp-accounting gave epsilon {epsilon}")
            return Total(epsilon, delta, "pld", None, rdp, sizes_used)
        except AccountingError as error:
            if rdp is None:
                raise
            note = f"dp-accounting gave no usable answer ({error}), so epsilon is Opacus' Renyi bound."
            return Total(rdp, delta, "rdp", note, rdp, sizes_used)


def _renyi(parts: list[list[float]], delta: float) -> float | None:
    try:
        epsilon = float(ask("rdp", "epsilon", parts=parts, delta=delta))
    except AccountingError:
        return None  # a comparison that is missing weakens nothing
    return epsilon if math.isfinite(epsilon) else None


def group_epsilon(parts: Sequence[Part], delta: float, size: int) -> Total:
    """Epsilon for ``size`` units at once at ``delta``: the composed mixture of Gaussians, tight up to the grid.

    Without subsampling in any part the closed form is returned: Gaussian mechanisms are mu-GDP, and a group of k is
    (k mu)-GDP (Dong, Roth, Su 2019, arXiv 1905.02383, Theorem 2.14). Where dp-accounting gives no answer, that of
    :func:`group_by_definition`. Raises as :func:`compose`.
    """
    _check_size(size)
    for q, sigma, steps in parts:
        accounting.check_setting(q, sigma, steps, delta)
    taken = [(q, sigma, steps) for q, sigma, steps in parts if steps > 0]
    if taken and all(q == 1.0 and sigma > 0 for q, sigma, _ in taken):
        mu = size * math.sqrt(sum(steps / sigma**2 for _, sigma, steps in taken))
        return Total(gaussian_epsilon(mu, delta), delta, "gaussian", None, None, (size,))
    try:
        return compose(parts, delta, size)
    except AccountingError as error:
        note = f"dp-accounting gave no usable answer ({error}), so epsilon follows from the definition for groups."
        return Total(group_by_definition(parts, delta, size), delta, "definition", note, None, (size,))


def group_by_definition(parts: Sequence[Part], delta: float, size: int) -> float:
    """Epsilon for a group of ``size`` from that of one unit alone, whatever the mechanism: looser, and always true.

    (e, d) for one unit is (k e, d (exp(k e) - 1) / (exp(e) - 1)) for k (Vadhan 2017, The Complexity of Differential
    Privacy, Lemma 2.2, with its sum in closed form). The accountant is asked at smaller and smaller d until the group
    meets ``delta``; infinite when it never does. Raises as :func:`compose`.
    """
    _check_size(size)
    best = math.inf
    d = delta
    for _ in range(60):
        try:
            e = compose(parts, d).epsilon
        except AccountingError:  # too small a delta for any accountant
            break
        if not math.isfinite(e):
            break
        log_factor = math.log(size) if e == 0 else size * e + _log1mexp(size * e) - (e + _log1mexp(e))
        if math.log(d) + log_factor <= math.log(delta):
            best = size * e
            break
        d = min(d / 2, math.exp(max(math.log(delta) - log_factor, -700.0)))
    return best


def _log1mexp(x: float) -> float:
    """ln(1 - exp(-x)) for x > 0."""
    return math.log(-math.expm1(-x))


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"The group size is {size!r}; give a whole number of at least 1.")


def read_spent(path: Path | str) -> RunSpent:
    """Plan and spent steps of a run, from its folder or its ledger; the chain is verified.

    A line that a crash left torn behind the last step counts as one more step, in case the disk broke its word. Raises
    :class:`~dpeq.errors.DataError` for a ledger that is damaged or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "ledger.jsonl"
    entries = read_ledger(path)
    fields = {k: v for k, v in entries[0].items() if k not in ("kind", "prev", "check", "plan_sha256")}
    plan = PrivacyPlan.from_dict(fields)
    last = [entry["kind"] for entry in entries if entry["kind"] in ("step", "torn")][-1:]
    torn = entries.torn is not None or last == ["torn"]
    return RunSpent(path, plan, min(entries.steps + torn, plan.steps))


def compose_ledgers(
    paths: Sequence[Path | str], *, delta: float | None = None, images_per_patient: int | None = None
) -> Total:
    """All runs on the same data together, from their ledgers or run folders; whether the data are the same you know.

    Every run counts with its whole plan, as in a summary: the steps that an unfinished one took are no constant that
    was fixed in advance. ``delta`` is the smallest of the plans' unless given. Runs must speak of one unit; with
    ``images_per_patient`` (a published maximum) the total speaks of a patient, for whom an image-level run is a run on
    a group of so many images. Raises :class:`ConfigError` when no path or one twice is given or the units differ, and
    as :func:`read_spent` and :func:`compose`.
    """
    runs = [read_spent(path) for path in paths]
    if not runs:
        raise ConfigError("No run was named; give run folders or ledgers.")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError("A run was named twice; name each once.")
    plans = [run.plan for run in runs]
    if images_per_patient is not None:
        _check_size(images_per_patient)
        groups = [images_per_patient if plan.unit == "image" else 1 for plan in plans]
    elif len({plan.unit for plan in plans}) > 1:
        raise ConfigError(
            "Some runs protect an image and others a patient; give images_per_patient, the most that one patient has."
        )
    else:
        groups = [1] * len(plans)
    parts = [Part(plan.sample_rate, plan.noise_multiplier, plan.steps) for plan in plans]
    return compose(parts, min(plan.delta for plan in plans) if delta is None else delta, groups)
