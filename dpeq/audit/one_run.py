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
from torch import nn

from dpeq.audit.canaries import CanaryNetwork, MarkedAugment, with_canaries
from dpeq.audit.inputs import InputCanaries
from dpeq.audit.kept import Heard, read_state
from dpeq.audit.listening import Array, listen, log_likelihood_ratio
from dpeq.audit.training import Course, train_aside
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError
from dpeq.privacy.audit.curves import own_curves
from dpeq.privacy.audit.f_dp import audit_f_dp
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.audit.result import METHODS, AuditResult, Kind
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.loop import StepRecord

__all__ = ["FEWEST", "Attack", "attack_training", "audit_training", "toss"]

FEWEST = 20
"""Canaries; with fewer nothing can be shown at 95 %."""

Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Attack:
    """What came of it: whether each canary was in, its score, how many steps a crash lost, and whether it was stopped.

    The scores of input canaries are zero until the training has ended. The canaries of kind "member" are the units of
    the training set themselves (:mod:`dpeq.audit.members`).
    """

    kind: Kind
    included: Bits
    scores: Array
    lost: int = 0
    stopped: bool = False


def toss(canaries: int) -> Bits:
    """A fair coin for each, from the operating system. Raises :class:`ConfigError` for fewer than :data:`FEWEST`."""
    if canaries < FEWEST:
        raise ConfigError(f"{canaries} canaries can show nothing; give {FEWEST} at least, better 1000.")
    return np.array([secrets.randbits(1) == 1 for _ in range(canaries)])


def attack_training(
    model: nn.Module,
    images: ImageSet,
    course: Course,
    folder: Path,
    *,
    canaries: int,
    kind: Literal["gradient", "input"] = "gradient",
    after_step: Callable[[StepRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Attack:
    """Trains ``model`` in place, with canaries beside ``images``, under a ledger of its own in ``folder``.

    What was begun in ``folder`` goes on there: the coins and scores are kept beside the weights, every
    ``course.save_every`` steps and at a stop. Steps between the last save and a crash are spent and not heard, which
    makes the attack weaker.

    Raises what :func:`dpeq.training.loop.train` raises, :class:`DataError` for a kept state that is damaged.
    """
    plan, settings = course.plan, course.settings
    if not plan.private:
        raise ConfigError("A plan without privacy promises nothing that an audit could test; give a finite epsilon.")
    before = read_state(folder)
    heard = Heard(toss(canaries), np.zeros(canaries)) if before is None else before.heard
    if len(heard.included) != canaries:
        raise ConfigError(
            f"The audit in {folder} has {len(heard.included)} canaries, not {canaries}; give another folder."
        )
    classes, chosen = len(images.classes), np.flatnonzero(heard.included).tolist()

    def hear(numbers: Array) -> None:
        heard.scores += log_likelihood_ratio(numbers, plan, tensors)

    inputs, network = None, model
    listening: AbstractContextManager[None] = nullcontext()
    if kind == "input":
        inputs = InputCanaries.make(canaries, images.images.shape[1:], classes)
        units = inputs.beside(images, chosen)
    else:
        network = drawn = CanaryNetwork(model, canaries, classes, plan.max_grad_norm, settings.class_weights)
        units, listening = with_canaries(images, chosen, drawn.label), listen(drawn, plan, hear)
        if course.augment is not None:
            course = replace(course, augment=MarkedAugment(course.augment))
    tensors = sum(p.requires_grad for p in network.parameters())
    with listening:
        result = train_aside(
            network,
            units,
            course,
            folder,
            heard,
            before,
            purpose=f"A training with {canaries} canaries",
            after_step=after_step,
            should_stop=should_stop,
        )
    lost = 0 if result.stopped else plan.steps - heard.steps
    if inputs is not None and not result.stopped:
        heard.scores = inputs.scores(result.averaged, course.device)
    return Attack(kind, heard.included, heard.scores, lost, result.stopped)


def audit_training(plan: PrivacyPlan, attack: Attack, *, confidence: float = 0.95) -> AuditResult:
    """The bound by the plan's own family of curves; what follows without any family is among the details.

    A plan without privacy has no family and promises no delta: its bound is Steinke's, at a delta that is small
    against the number of canaries, without which it could show nothing.
    """
    scores, included = attack.scores, attack.included
    delta = plan.delta if plan.private else min(plan.delta, 0.01 / len(scores))
    bare = audit_one_run(scores, included, delta=delta, confidence=confidence, theoretical=plan.epsilon_spent)
    beside = {
        "epsilon_lower_assuming_nothing": bare.epsilon_lower,
        "steps": plan.steps,
        "steps_lost": attack.lost,
        "noise_multiplier": plan.noise_multiplier,
        "trainings": 1,
        "looks_at_units": attack.kind == "member",
    }
    own = bare
    if plan.private:
        own = audit_f_dp(scores, included, own_curves(plan), confidence=confidence, theoretical=plan.epsilon_spent)
    return replace(own, method=f"{METHODS[attack.kind]}, {own.method}", details={**own.details, **beside})
