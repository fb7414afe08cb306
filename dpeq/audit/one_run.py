"""One whole training under attack: m canaries, each in or out by a fair coin, heard at every step.

The training is the ordinary one, on the real units, with the canaries (:mod:`dpeq.audit.canaries`) as further units
that the loop samples, clips and noises like all others. Its network is the configured one, whose weights learn what
they would without canaries; they are thrown away all the same, for this is a training more on the same data. Its ledger
says what that spent.

The attacker knows the plan, hears every released sum, and scores each canary by the likelihood ratio of what he heard
along its direction. He does not know the coins. A weaker one, with canaries that are images (:mod:`dpeq.audit.inputs`),
sees the averaged weights of the end and nothing before.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dpeq.audit.canaries import CanaryNetwork, MarkedAugment, with_canaries
from dpeq.audit.inputs import InputCanaries
from dpeq.audit.kept import read_state, write_state
from dpeq.audit.listening import Array, listen, log_likelihood_ratio
from dpeq.data.images import ImageSet
from dpeq.data.views import Augment
from dpeq.errors import ConfigError
from dpeq.privacy.audit.curves import own_curves
from dpeq.privacy.audit.f_dp import audit_f_dp
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.audit.result import AuditResult
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import StepRecord, train
from dpeq.training.state import OptimizerSettings, TrainingState

__all__ = ["FEWEST", "LEDGER", "Attack", "Kind", "attack_training", "audit_training", "toss"]

FEWEST = 20
"""Canaries; with fewer nothing can be shown at 95 %."""

LEDGER = "audit-ledger.jsonl"
"""Not the name that runs have: a summary takes every folder with theirs for a run that could be released."""

Kind = Literal["gradient", "input"]
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Attack:
    """What came of it: whether each canary was in, its score, how many steps were heard, and whether it was stopped.

    The scores of input canaries are zero until the training has ended.
    """

    kind: Kind
    included: Bits
    scores: Array
    heard: int
    stopped: bool


def toss(canaries: int) -> Bits:
    """A fair coin for each, from the operating system. Raises :class:`ConfigError` for fewer than :data:`FEWEST`."""
    if canaries < FEWEST:
        raise ConfigError(f"{canaries} canaries can show nothing; give {FEWEST} at least, better 1000.")
    return np.array([secrets.randbits(1) == 1 for _ in range(canaries)])


def attack_training(
    model: nn.Module,
    images: ImageSet,
    plan: PrivacyPlan,
    settings: OptimizerSettings,
    folder: Path,
    *,
    canaries: int,
    device: torch.device,
    augment: Augment | None = None,
    images_per_unit: int | None = None,
    kind: Kind = "gradient",
    save_every: int = 20,
    after_step: Callable[[StepRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Attack:
    """Trains ``model`` in place, with canaries beside ``images``, under a ledger of its own in ``folder``.

    What was begun in ``folder`` goes on there: the coins and scores are kept beside the weights, every ``save_every``
    steps and at a stop. Steps between the last save and a crash are spent and not heard, which makes the attack weaker.

    Raises what :func:`dpeq.training.loop.train` raises, :class:`DataError` for a kept state that is damaged.
    """
    if not plan.private:
        raise ConfigError("A plan without privacy promises nothing that an audit could test; give a finite epsilon.")
    before = read_state(folder)
    included = toss(canaries) if before is None else before.included
    if len(included) != canaries:
        raise ConfigError(f"The audit in {folder} has {len(included)} canaries, not {canaries}; give another folder.")
    scores = np.zeros(canaries) if before is None else before.scores
    heard = 0 if before is None else before.heard
    classes, chosen = len(images.classes), np.flatnonzero(included).tolist()

    def hear(numbers: Array) -> None:
        nonlocal heard
        scores[:] += log_likelihood_ratio(numbers, plan, tensors)
        heard += 1

    inputs, network, views = None, model, augment
    listening: AbstractContextManager[None] = nullcontext()
    if kind == "input":
        inputs = InputCanaries.make(canaries, images.images.shape[1:], classes)
        units = inputs.beside(images, chosen)
    else:
        network = drawn = CanaryNetwork(model, canaries, classes, plan.max_grad_norm, settings.class_weights)
        units, views = with_canaries(images, chosen, drawn.label), None if augment is None else MarkedAugment(augment)
        listening = listen(drawn, plan, hear)
    tensors = sum(p.requires_grad for p in network.parameters())
    states: list[TrainingState] = []

    def save() -> None:
        write_state(folder, states[0], included, scores, heard)

    def begin(state: TrainingState) -> None:
        states.append(state)
        if before is None:
            save()  # before the first step: the coins must not be lost
        else:
            state.restore(before.step, before.tensors)

    def stepped(state: TrainingState, record: StepRecord) -> None:
        if record.step % save_every == 0 or record.step == plan.steps:
            save()
        after_step(record)

    path = folder / LEDGER
    with (
        Ledger.open(path, plan) if path.exists() else Ledger.create(path, plan) as ledger,
        listening,
    ):
        if not any(note["kind"] == "audit" for note in ledger.notes):
            ledger.note("audit", canaries=canaries, detail="A training with canaries: an audit, not for release.")
        result = train(
            network,
            units,
            plan,
            ledger,
            settings,
            Randomness.create(None),
            device=device,
            augment=views,
            images_per_unit=images_per_unit,
            resume=begin,
            after_step=stepped,
            should_stop=should_stop,
        )
        if result.stopped:
            save()
        elif inputs is not None:
            scores = inputs.scores(result.averaged, device)
    return Attack(kind, included, scores, heard, result.stopped)


def audit_training(plan: PrivacyPlan, attack: Attack, *, confidence: float = 0.95) -> AuditResult:
    """The bound by the plan's own family of curves; what follows without any family is among the details."""
    bare = audit_one_run(attack.scores, attack.included, delta=plan.delta, confidence=confidence)
    own = audit_f_dp(
        attack.scores, attack.included, own_curves(plan), confidence=confidence, theoretical=plan.epsilon_spent
    )
    beside = {
        "epsilon_lower_assuming_nothing": bare.epsilon_lower,
        "steps": plan.steps,
        "steps_heard": attack.heard,
        "noise_multiplier": plan.noise_multiplier,
    }
    return replace(own, method=f"{attack.kind} canaries, {own.method}", details={**own.details, **beside})
