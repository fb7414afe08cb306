"""The private training loop: sample, clip, noise, step; the ledger is written before each step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dpeq.data.images import ImageSet
from dpeq.data.sampling import UnitViews, poisson_sample
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import PlanOptimizer, UnitGradSampleModule
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.privacy.state import StateGuard

__all__ = ["OptimizerSettings", "TrainingResult", "train"]


@dataclass(frozen=True)
class OptimizerSettings:
    """Public constants of the optimiser.

    Attributes:
        lr: learning rate of SGD on the normalised, noised sum.
        momentum: SGD momentum.
        ema_decay: decay of the averaged weights that are evaluated (post-processing, costs no epsilon).
        physical_units: units whose gradients are held in memory at once; changes memory, never the result.
        decay_lr: cosine decay of the learning rate to zero over the plan's steps.
    """

    lr: float
    momentum: float = 0.0
    ema_decay: float = 0.99
    physical_units: int = 64
    decay_lr: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves behind: averaged weights, last weights, steps taken and the reason it stopped early, if any."""

    averaged: nn.Module
    last: nn.Module
    steps: int
    seconds: float


ProgressHook = Callable[[int], None]


def train(
    model: nn.Module,
    images: ImageSet,
    plan: PrivacyPlan,
    ledger: Ledger,
    settings: OptimizerSettings,
    randomness: Randomness,
    *,
    device: torch.device,
    on_step: ProgressHook = lambda step: None,
) -> TrainingResult:
    """Trains ``model`` in place for all steps of the plan; an exhausted ledger leaves it as it is.

    Raises:
        BudgetError: from the ledger, before a step that the plan does not allow.
        ConfigError: when the network cannot be trained privately, or plan, ledger and data do not belong together.
    """
    if ledger.plan != plan:
        raise ConfigError("The ledger was opened for another plan; open it with the plan of this training.")
    if 0 < ledger.steps < plan.steps:
        raise ConfigError(
            f"The ledger holds {ledger.steps} of {plan.steps} steps of a run whose weights are gone; start a new run."
        )
    if plan.unit != images.unit:
        raise ConfigError(
            f"The plan protects one {plan.unit} but the data is grouped by {images.unit}; "
            f"set data.unit to '{plan.unit}'."
        )
    started = time.monotonic()
    model.to(device).train()
    averaged = _averaged(model, settings.ema_decay)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], settings.lr, settings.momentum)
    schedule = (
        torch.optim.lr_scheduler.CosineAnnealingLR(sgd, plan.steps)
        if settings.decay_lr
        else torch.optim.lr_scheduler.ConstantLR(sgd, 1.0, 0)
    )
    views = UnitViews(images.units, images.n_units, plan.views)
    wrapped = UnitGradSampleModule(model, plan.views)
    guard = StateGuard(model)
    try:
        optimizer = PlanOptimizer(sgd, plan)
        while ledger.steps < plan.steps:
            step = ledger.steps + 1
            ledger.spend(step)  # before anything is read: a crash from here on can only over-count
            sampled = poisson_sample(images.n_units, plan.sample_rate, randomness.stream("sampling", step))
            # All rows are chosen at once, so that the physical batch size cannot change which.
            rows = views.choose(sampled, randomness.stream("views", step))
            for part in rows.split(settings.physical_units * plan.views) if len(rows) else ():
                wrapped.backward(wrapped(images.images[part].to(device)), images.labels[part].to(device))
                optimizer.accumulate()
            guard.check()
            optimizer.finish(randomness.stream("noise", step))
            guard.take()
            schedule.step()
            averaged.update_parameters(model)
            on_step(step)
    finally:
        wrapped.detach()
    return TrainingResult(averaged.module.eval(), model.eval(), ledger.steps, time.monotonic() - started)


def _averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average with the warm-up min(decay, (1 + n) / (10 + n)): early weights are soon forgotten."""

    def update(average: Tensor, current: Tensor, n: Tensor | int) -> Tensor:
        d = min(decay, (1 + float(n)) / (10 + float(n)))
        return average.lerp(current, 1 - d)

    return AveragedModel(copy.deepcopy(model), avg_fn=update)
