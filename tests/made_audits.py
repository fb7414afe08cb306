"""Audits as the attacks write them, without a training: true scores of Gaussian mechanisms, judged by the product."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpeq.audit.one_run import Attack, Kind, audit_training
from dpeq.audit_verb.outcome import Outcome
from dpeq.privacy.audit.curves import profile_of
from dpeq.privacy.audit.membership import attack_quality
from dpeq.privacy.audit.result import AuditResult
from dpeq.privacy.audit.steps import audit_step
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan


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
    return _written(found, "step", scores, members, profile_of(one))


@cache
def training_audit(
    plan: PrivacyPlan, strength: float, judged: int = 1000, kind: Kind = "gradient", shadows: int = 0
) -> str:
    """An attack on a whole training whose scores lie ``strength`` apart; of "member" with so many ``shadows``."""
    random = np.random.default_rng(6)
    members = random.random(judged) < 0.5
    scores = random.normal(size=judged) + strength * members
    return training_of(plan, scores, members, kind, shadows)


def training_of(plan: PrivacyPlan, scores: Any, members: Any, kind: Kind = "gradient", shadows: int = 0) -> str:
    """An attack on a whole training that gave the ``members``, and all others, these ``scores``."""
    result = audit_training(plan, Attack(kind, members, scores))
    if shadows:
        details = {**result.details, "shadow_models": shadows, "trainings": shadows + 1}
        result = replace(result, details=details)
    return _written(result, "training", scores, members, profile_of(plan) if plan.private else None)


def put_audit(run: Path, name: str, text: str, **changes: Any) -> Path:
    """Writes an audit beside a run, with the ``changes`` of :func:`changed`."""
    folder = begin_audit(run, name)
    (folder / "audit.json").write_text(json.dumps(changed(json.loads(text), **changes)))
    return folder


def begin_audit(run: Path, name: str, **facts: Any) -> Path:
    """The folder of an audit that was begun, with other ``facts`` about how."""
    folder = run / "audits" / name
    folder.mkdir(parents=True)
    begun = {"plan_sha256": PrivacyPlan.read(run / "plan.json").sha256, **facts}
    (folder / "begun.json").write_text(json.dumps(begun))
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


def _written(result: AuditResult, of: Literal["step", "training"], scores: Any, members: Any, profile: Any) -> str:
    return json.dumps(Outcome([result], attack_quality(scores, members, profile=profile), profile, of).to_dict())


def titles(report: Mapping[str, Any]) -> list[str]:
    """Of what a report says needs attention."""
    return [entry["title"] for entry in report["assumptions"] if entry["kind"] == "attention"]


def part(audits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a report has about audits."""
    trainings = sum(audit["details"].get("trainings", 0) for audit in audits)
    return {"audits": audits, "audit_trainings": trainings, "unfinished_audits": []}


def named(audits: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next(audit for audit in audits if audit["name"] == name)
