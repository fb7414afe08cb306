"""The audits that train on the data: once with canaries, or a target and its shadows on halves of the units."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from dpeq.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from dpeq.audit.one_run import Attack
    from dpeq.audit.training import Course
    from dpeq.audit_verb.asked import Asked
    from dpeq.audit_verb.outcome import Outcome
    from dpeq.console import RichObserver
    from dpeq.data.images import ImageSet
    from dpeq.interruption import GracefulStop
    from dpeq.privacy.audit.result import AuditResult
    from dpeq.training.prepare import Prepared

__all__ = ["train_with_canaries", "train_with_shadows"]


def train_with_canaries(out: Console, asked: Asked, stop: GracefulStop) -> Outcome | None:
    """One training with canaries; None when it was stopped."""
    from dpeq.audit.canaries import CanaryNetwork
    from dpeq.audit.kept import read_state
    from dpeq.audit.one_run import FEWEST, attack_training, audit_training
    from dpeq.console import RichObserver

    plan, canaries = asked.plan, asked.amount
    if canaries < FEWEST:
        raise ConfigError(f"{canaries} canaries can show nothing; give {FEWEST} at least, better 1000.")
    prepared, course = _prepare(asked)
    classes = len(prepared.card.classes)
    model = _build(asked, prepared)
    timed, shape = model, prepared.shape
    if asked.method == "one-run":
        timed = CanaryNetwork(model, canaries, classes, plan.max_grad_norm, course.settings.class_weights)
        shape = (shape[0] + 1, *shape[1:])
    before = read_state(asked.folder)
    left = plan.steps - (0 if before is None else before.step)
    share = 1 + plan.sample_rate * canaries / 2 / plan.expected_batch_size
    _announce(out, asked, course, timed, shape, trainings=1, share=share * left / plan.steps)
    with stop(asked.folder) as should_stop, RichObserver(out) as observer:
        images = _load(asked, prepared, observer, {"canaries": canaries})
        observer.stage("Training with canaries")
        attack = attack_training(
            model,
            images,
            course,
            asked.folder,
            canaries=canaries,
            kind="input" if asked.method == "black-box" else "gradient",
            after_step=lambda record: observer.stepped(record, plan),
            should_stop=should_stop,
        )
        if attack.stopped:
            return None
        observer.stage("Computing the bound")
        return _judged(asked, attack, audit_training(plan, attack))


def train_with_shadows(out: Console, asked: Asked, stop: GracefulStop) -> Outcome | None:
    """A target and its shadow models, one after the other; None when it was stopped."""
    from dpeq.audit.members import attack_members, steps_left
    from dpeq.audit.one_run import audit_training
    from dpeq.console import RichObserver
    from dpeq.privacy.audit.shadows import check_shadows

    plan, shadows = asked.plan, asked.amount
    check_shadows(shadows)
    prepared, course = _prepare(asked)
    trainings = 1 + shadows
    left = steps_left(asked.folder, shadows, plan.steps)
    model = _build(asked, prepared)
    _announce(out, asked, course, model, prepared.shape, trainings=trainings, share=left / plan.steps / 2)
    out.print(
        "Its figures are computed from the training images and from who was in: no noise covers them, and the "
        "guarantee does not speak of them.",
        soft_wrap=True,
    )
    with stop(asked.folder) as should_stop, RichObserver(out) as observer:
        images = _load(asked, prepared, observer, {"shadows": shadows})
        attack = attack_members(
            lambda: _build(asked, prepared),
            images,
            course,
            asked.folder,
            shadows=shadows,
            before_model=lambda number: observer.stage(f"Model {number + 1} of {trainings}"),
            after_step=lambda record: observer.stepped(record, plan),
            should_stop=should_stop,
        )
        if attack is None:
            return None
        observer.stage("Computing the bound")
        result = audit_training(plan, attack)
        details = {**result.details, "shadow_models": shadows, "trainings": trainings}
        return _judged(asked, attack, replace(result, details=details))


def _prepare(asked: Asked) -> tuple[Prepared, Course]:
    import torch

    from dpeq.audit.training import Course
    from dpeq.training.prepare import augmentation, choose_device, optimizer_settings, prepare

    config = asked.config
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    prepared = prepare(config)
    course = Course(
        asked.plan,
        optimizer_settings(config),
        choose_device(config.training.device),
        augmentation(prepared),
        config.views.images_per_unit,
        config.training.checkpoint_every,
    )
    return prepared, course


def _build(asked: Asked, prepared: Prepared) -> nn.Module:
    """The configured network, its weights drawn anew, or those that the configuration starts from."""
    from dpeq.dry_step import require_trainable
    from dpeq.models.registry import build_model
    from dpeq.models.weights import StartingWeights
    from dpeq.privacy.randomness import Randomness

    classes = len(prepared.card.classes)
    model = build_model(prepared.spec, prepared.shape[0], classes, Randomness.create(None).init_seed)
    if asked.config.model.weights is not None:
        StartingWeights.read(asked.config.model.weights).put_into(model)
    if prepared.foreign:
        require_trainable(model, prepared.shape, classes, asked.plan.views)
    return model


def _announce(
    out: Console,
    asked: Asked,
    course: Course,
    model: nn.Module,
    shape: tuple[int, ...],
    *,
    trainings: int,
    share: float,
) -> None:
    """What is about to happen, and how long: ``share`` is the work that is left, in trainings on all units."""
    from dpeq.console import duration
    from dpeq.training.estimate import estimate_seconds

    plan = asked.plan
    units = course.settings.physical_units
    seconds = share * estimate_seconds(model, shape, plan, physical_units=units, device=course.device)
    what = f"A training of {plan.steps} steps" if trainings == 1 else f"{trainings} trainings of {plan.steps} steps"
    out.print(f"{what}; time on this machine: about {duration(seconds)}.")
    more = "one more training" if trainings == 1 else f"{trainings} more trainings"
    counted = "a summary of runs counts what it spends" if asked.run else "no summary of runs counts what it spends"
    out.print(f"It takes {more} on this data, for an audit and not for release; {counted}.", soft_wrap=True)


def _load(asked: Asked, prepared: Prepared, observer: RichObserver, amount: dict[str, int]) -> ImageSet:
    """The training images, once it is sure that they and all else are those with which the audit began."""
    from dpeq.audit.kept import begin
    from dpeq.training.files import fingerprint_key
    from dpeq.training.prepare import load_data
    from dpeq.training.start import Start, fingerprint, settings_of

    observer.planned(asked.plan)
    observer.stage(f"Loading {prepared.card.title}")
    splits = load_data(prepared, observer.loading)
    if asked.run is not None:
        key = fingerprint_key(asked.run.resolve().parent, make=False)
        Start.read(asked.run).check_data(fingerprint(splits, key))
    flat = json.dumps(settings_of(asked.config, prepared.card), sort_keys=True)
    facts = {
        **asked.begun,
        **amount,
        "settings_sha256": hashlib.sha256(flat.encode()).hexdigest(),
        "data_sha256": fingerprint(splits, fingerprint_key(asked.folder, make=True)),
    }
    begin(asked.folder, facts)
    return splits["train"]


def _judged(asked: Asked, attack: Attack, result: AuditResult) -> Outcome:
    from dpeq.audit_verb.outcome import Outcome
    from dpeq.privacy.audit.curves import profile_of
    from dpeq.privacy.audit.membership import attack_quality

    profile = profile_of(asked.plan) if asked.plan.private else None
    quality = attack_quality(attack.scores, attack.included, profile=profile)
    return Outcome([result], quality, profile, "training")
