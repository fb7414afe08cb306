"""Audits as the attacks write them, without a training: true scores of Gaussian mechanisms, judged by the product."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpeq.audit.step import audit_step
from dpeq.privacy.audit.curves import own_curves, profile_of
from dpeq.privacy.audit.f_dp import audit_f_dp
from dpeq.privacy.audit.membership import attack_quality
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.audit.result import AuditResult
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.tradeoff import Profile

LIMIT_RATES = np.geomspace(1e-4, 1.0, 60)


@cache
def step_audit(plan: PrivacyPlan, repetitions: int = 2000, louder: float = 1.0, certain: bool = True) -> str:
    """One step with its unit in it, so many times with and without; the unit has ``louder`` times its influence."""
    random = np.random.default_rng(5)
    outside = random.normal(size=repetitions)
    there = 1.0 if certain else random.random(repetitions) < plan.sample_rate
    inside = random.normal(size=repetitions) + there * louder / plan.noise_multiplier
    found = audit_step(plan, inside, outside, certain=certain).training
    one = replace(plan, steps=1, sample_rate=1.0 if certain else plan.sample_rate)
    scores, members = np.concatenate([inside, outside]), np.arange(2 * repetitions) < repetitions
    result = replace(found, details={**found.details, "trainings": 0, "looks_at_units": False})
    return _written(result, "step", scores, members, profile_of(one))


@cache
def training_audit(
    plan: PrivacyPlan, strength: float, judged: int = 1000, kind: str = "gradient canaries", **more: Any
) -> str:
    """An attack on a whole training whose scores lie ``strength`` apart; ``more`` are details."""
    random = np.random.default_rng(6)
    members = random.random(judged) < 0.5
    scores = random.normal(size=judged) + strength * members
    if not plan.private:
        found = audit_one_run(scores, members, delta=plan.delta, theoretical=math.inf)
        return _written(replace(found, method=f"{kind}, {found.method}"), "training", scores, members, None)
    bare = audit_one_run(scores, members, delta=plan.delta)
    found = audit_f_dp(scores, members, own_curves(plan), theoretical=plan.epsilon_spent)
    beside = {"epsilon_lower_assuming_nothing": bare.epsilon_lower, "steps": plan.steps}
    beside |= {"noise_multiplier": plan.noise_multiplier, "trainings": 1, "looks_at_units": False, **more}
    result = replace(found, method=f"{kind}, {found.method}", details={**found.details, **beside})
    return _written(result, "training", scores, members, profile_of(plan))


def put_audit(run: Path, name: str, text: str, **changes: Any) -> Path:
    """Writes an audit beside a run, with the ``changes`` of :func:`changed`."""
    folder = run / "audits" / name
    folder.mkdir(parents=True)
    (folder / "begun.json").write_text("{}")
    (folder / "audit.json").write_text(json.dumps(changed(json.loads(text), **changes)))
    return folder


def put_ledger(folder: Path, plan: PrivacyPlan, steps: int) -> None:
    """The ledger of a training for an audit, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger.create(folder / AUDIT_LEDGER, plan) as ledger:
        for step in range(1, steps + 1):
            ledger.spend(step)


def changed(audit: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """``audit`` with other entries; of ``details`` and ``attack`` some keys are enough."""
    merged = {key: audit[key] | value for key, value in changes.items() if key in ("details", "attack")}
    return audit | changes | merged


def _written(result: AuditResult, of: str, scores: Any, members: Any, profile: Profile | None) -> str:
    quality = attack_quality(scores, members, profile=profile).to_dict()
    limit = None if profile is None else [[float(a), profile.hit_rate(float(a))] for a in LIMIT_RATES]
    return json.dumps({**result.to_dict(), "attack": {"of": of, **quality, "limit": limit}})
