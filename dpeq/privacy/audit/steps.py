"""What repetitions of one private step prove of that step, and of a training of T such steps.

The step is the plan's, taken many times on neighbouring data (:mod:`dpeq.audit.step` takes it). What holds for a step
says what a training of T such steps reveals: the noise found to be there at most, at the plan's rate, T times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy.audit.counts import Array, rate_high
from dpeq.privacy.audit.curves import own_curves
from dpeq.privacy.audit.many_runs import audit_many_runs
from dpeq.privacy.audit.result import AuditResult
from dpeq.privacy.plan import PrivacyPlan

__all__ = [
    "STEP",
    "StepAudit",
    "audit_step",
    "best_threshold",
    "bound_on_training",
    "in_every_step",
    "many_steps_of",
    "one_step_of",
    "said_of_step",
]

STEP = "one private step"
"""How the methods of these audits begin."""


@dataclass(frozen=True)
class StepAudit:
    """Two bounds that hold together: what ``step`` reveals at least, and what a ``training`` of the plan's steps does.

    The second rests on every step of a training being like the audited one.
    """

    step: AuditResult
    training: AuditResult


def one_step_of(plan: PrivacyPlan) -> PrivacyPlan:
    """The plan of a single step, with its own epsilon at the same delta. Raises :class:`ConfigError` if non-private."""
    if not plan.private:
        raise ConfigError("A plan without privacy promises nothing that an audit could test; give a finite epsilon.")
    return _plan_at(plan, 1)


def many_steps_of(plan: PrivacyPlan, steps: int) -> PrivacyPlan:
    """The plan of ``steps`` repetitions: the loop and its ledger want one. Its bound is Opacus' Renyi accountant's."""
    spent = accounting.epsilon_rdp(plan.sample_rate, plan.noise_multiplier, steps, plan.delta)
    if not math.isfinite(spent):
        raise ConfigError(
            f"{steps} steps at noise multiplier {plan.noise_multiplier:g} have no finite epsilon; repeat fewer."
        )
    return _claiming(plan, steps, spent, "rdp", None)


def in_every_step(plan: PrivacyPlan) -> PrivacyPlan:
    """The same step without its coins: all units are in. For :func:`one_step_of` and :func:`many_steps_of` alone."""
    return replace(plan, sample_rate=1.0)


def audit_step(
    plan: PrivacyPlan, with_canary: Array, without: Array, *, certain: bool = False, confidence: float = 0.95
) -> StepAudit:
    """The bounds from the scores of repetitions ``with_canary`` and ``without``.

    ``certain`` says that they are of :func:`in_every_step`: far sharper about clipping and noise, and silent about the
    coins, which the second bound then assumes to be the plan's. Raises :class:`ConfigError` for fewer than ten of
    either, and a non-private plan.
    """
    one = one_step_of(in_every_step(plan) if certain else plan)
    step = audit_many_runs(
        with_canary,
        without,
        own_curves(one),
        threshold=best_threshold(one, min(len(with_canary), len(without)), confidence),
        confidence=confidence,
        theoretical=one.epsilon_spent,
    )
    strength = step.details["strength"]
    method, assumes = said_of_step(plan, len(with_canary) + len(without), certain)
    epsilon, mu = bound_on_training(plan, strength)
    training = AuditResult(
        method=method,
        epsilon_lower=epsilon,
        mu_lower=mu,
        confidence=confidence,
        delta=plan.delta,
        theoretical=plan.epsilon_spent,
        assumes=assumes,
        details={
            **step.details,
            "in_every_step": certain,
            "noise_multiplier": plan.noise_multiplier,
            "noise_multiplier_at_most": 1.0 / strength if strength > 0 else None,
            "one_step_epsilon_lower": step.epsilon_lower,
            "one_step_theoretical": step.theoretical,
            "one_step_contradicts": step.contradicts,
            "trainings": 0,
            "looks_at_units": False,
        },
    )
    return StepAudit(replace(step, method=f"{STEP}, {step.method}"), training)


def bound_on_training(plan: PrivacyPlan, strength: float) -> tuple[float, float | None]:
    """Epsilon and mu, at least, of a training every step of which has the ``strength`` that was found for one."""
    curves = own_curves(plan)
    # The subsampled family counts the steps itself; Gaussian mechanisms compose to one of the root of their number.
    of_all = strength * math.sqrt(plan.steps) if plan.sample_rate == 1.0 else strength
    return curves.epsilon(of_all), curves.mu(of_all)


def best_threshold(plan: PrivacyPlan, repetitions: int, confidence: float) -> float:
    """Where the plan says that so many repetitions of either kind will prove most; it is named before any is looked at.

    A threshold t has a rate of false alarms Phi(-t) and hits with (1 - q) Phi(-t) + q Phi(1 / sigma - t), once a unit
    is in. To rates within their confidence limits belongs the 1 / sigma that solves the same equation, and the t with
    the largest is returned.
    """
    from scipy.special import ndtr, ndtri

    q, shift = plan.sample_rate, 1.0 / plan.noise_multiplier
    t = np.linspace(-3.0, shift + 4.0, 701)
    each = 1.0 - (1.0 - confidence) / 2
    alarms = rate_high(repetitions * ndtr(-t), repetitions, each)
    misses = rate_high(repetitions * ((1.0 - q) * ndtr(t) + q * ndtr(t - shift)), repetitions, each)
    explained = (1.0 - misses - (1.0 - q) * alarms) / q  # the part of the sampled ones that hits at least
    with np.errstate(invalid="ignore"):
        strength = np.where((explained > 0) & (alarms < 1), ndtri(explained) - ndtri(alarms), -np.inf)
    return float(t[int(np.nanargmax(strength))])


def said_of_step(plan: PrivacyPlan, times: int, certain: bool) -> tuple[str, str]:
    """The name of the method and what the bound on the training assumes, of so many repetitions of both kinds."""
    if certain or plan.sample_rate == 1.0:
        coins = f", of units sampled at the rate {plan.sample_rate:.4g}, which was not tested" if certain else ""
        what = f"Gaussian mechanisms with the noise of the audited one{coins}"
    else:
        what = "Poisson-subsampled Gaussian mechanisms with the audited one's noise"
    return f"{STEP}, {times} times", f"That all {plan.steps} steps are {what}."


def _plan_at(plan: PrivacyPlan, steps: int) -> PrivacyPlan:
    spent, accountant, note = accounting.upper_bound(plan.sample_rate, plan.noise_multiplier, steps, plan.delta)
    return _claiming(plan, steps, spent, accountant, note)


def _claiming(plan: PrivacyPlan, steps: int, spent: float, accountant: str, note: str | None) -> PrivacyPlan:
    key = {"prv": "prv_upper"}.get(accountant, accountant)
    return replace(
        plan,
        steps=steps,
        epsilon_target=max(spent, 1e-9),
        accountant=accountant,
        accountant_note=note,
        mu=None,
        epsilon={key: spent},
    )
