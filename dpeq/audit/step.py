"""The private step itself, thousands of times: with one unit of the largest influence there is, and without it.

The steps are those of the ordinary training loop on a network of a few weights: its coins, its clipping, its noise and
its normaliser under the plan's constants, every block of steps under a fresh key from the operating system. The two
sets of units are neighbours: a few made-up images, with or without one canary (:mod:`dpeq.audit.canaries`), whose
clipped gradient has length C along one direction. The score of a step is the released sum along that direction. The
images are made up, so nobody's privacy is spent.

What holds for a step says what a training of T such steps reveals: the noise found to be there at most, at the plan's
rate, T times.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dpeq.audit.canaries import CanaryNetwork, with_canaries
from dpeq.audit.listening import listen
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy.audit.counts import rate_high
from dpeq.privacy.audit.curves import GaussianCurves, SubsampledGaussianCurves, own_curves
from dpeq.privacy.audit.many_runs import audit_many_runs
from dpeq.privacy.audit.result import AuditResult
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import train
from dpeq.training.state import OptimizerSettings

__all__ = ["StepAudit", "audit_step", "best_threshold", "in_every_step", "many_steps_of", "one_step_of", "repeat_step"]

Array = npt.NDArray[np.float64]

_UNITS, _EDGE = 4, 2  # of the others' made-up images
_MEMORY = "/dev/shm"
_SHORT_LIVED = _MEMORY if os.access(_MEMORY, os.W_OK) else None
"""Where ledgers of made-up images lie: they need not outlive a crash, and a disk would take longer than the step."""


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


def repeat_step(
    plan: PrivacyPlan,
    *,
    canary: bool,
    after: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Array:
    """``plan.steps`` repetitions of one step: a score each, higher where the canary is.

    Args:
        plan: as :func:`many_steps_of` makes it.
        canary: whether the neighbour with the canary is trained on.
        after: called after each repetition.
        should_stop: asked between two; the scores so far are returned.
    """
    small = nn.Sequential(nn.Flatten(), nn.Linear(_EDGE * _EDGE, 2))
    network = CanaryNetwork(small, 1, 2, plan.max_grad_norm)
    units = torch.arange(_UNITS)
    pixels = torch.randn(_UNITS, 1, _EDGE, _EDGE)
    others = ImageSet(pixels, units % 2, units, _UNITS, ("a", "b"), "made-up", plan.unit)
    scores: list[float] = []
    # Weights hardly move, so that thousands of steps are repetitions of one.
    settings = OptimizerSettings(lr=1e-6, ema_decay=0.0)
    with (
        tempfile.TemporaryDirectory(dir=_SHORT_LIVED) as folder,
        Ledger.create(Path(folder) / "ledger.jsonl", plan) as ledger,
        listen(network, plan, lambda heard: scores.append(float(heard[0]))),
    ):
        train(
            network,
            with_canaries(others, [0] if canary else [], network.label),
            plan,
            ledger,
            settings,
            Randomness.create(None),
            device=torch.device("cpu"),
            after_step=lambda state, record: after(),
            should_stop=should_stop,
        )
    return np.array(scores, dtype=np.float64)


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
    if plan.sample_rate == 1.0:
        gaussian = GaussianCurves(plan.delta)
        strength_of_all = strength * math.sqrt(plan.steps)
        epsilon, mu = gaussian.epsilon(strength_of_all), strength_of_all
    else:
        epsilon, mu = SubsampledGaussianCurves(plan.delta, plan.sample_rate, plan.steps).epsilon(strength), None
    training = AuditResult(
        method=f"one private step, {len(with_canary) + len(without)} times",
        epsilon_lower=epsilon,
        mu_lower=mu,
        confidence=confidence,
        delta=plan.delta,
        theoretical=plan.epsilon_spent,
        assumes=_assumed(plan, certain),
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
    return StepAudit(replace(step, method=f"one private step, {step.method}"), training)


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


def _assumed(plan: PrivacyPlan, certain: bool) -> str:
    if certain or plan.sample_rate == 1.0:
        coins = f", of units sampled at the rate {plan.sample_rate:.4g}, which was not tested" if certain else ""
        return f"That all {plan.steps} steps are Gaussian mechanisms with the noise of the audited one{coins}."
    return f"That all {plan.steps} steps are Poisson-subsampled Gaussian mechanisms with the audited one's noise."


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
