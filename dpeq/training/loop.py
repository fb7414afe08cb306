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
from dpeq.training.randomness import Randomness

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
    """Trains ``model`` in place for the plan's steps that the ledger has left.

    Raises:
        BudgetError: from the ledger, before a step that the plan does not allow.
        ConfigError: when the network cannot be trained privately.
    """
    if plan.unit == "image" and images.n_units != len(images.labels):
        raise ConfigError("The plan protects images but the data groups them by patient; set data.unit to 'patient'.")
    started = time.monotonic()
    model.to(device).train()
    averaged = _averaged(model, settings.ema_decay)
    wrapped = UnitGradSampleModule(model, plan.views)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], settings.lr, settings.momentum)
    schedule = (
        torch.optim.lr_scheduler.CosineAnnealingLR(sgd, plan.steps)
        if settings.decay_lr
        else torch.optim.lr_scheduler.ConstantLR(sgd, 1.0, 0)
    )
    optimizer = PlanOptimizer(sgd, plan, randomness.noise)
    views = UnitViews(images.units, images.n_units, plan.views)
    while ledger.steps < plan.steps:
        step = ledger.steps + 1
        ledger.spend(step)  # before anything is read: a crash from here on can only over-count
        sampled = poisson_sample(images.n_units, plan.sample_rate, randomness.sampling)
        for units in sampled.split(settings.physical_units) if len(sampled) else ():
            rows = views.choose(units, randomness.sampling)
            wrapped.backward(wrapped(images.images[rows].to(device)), images.labels[rows].to(device))
            optimizer.accumulate()
        optimizer.finish()
        schedule.step()
        averaged.update_parameters(model)
        on_step(step)
    wrapped.detach()
    return TrainingResult(averaged.module.eval(), model.eval(), ledger.steps, time.monotonic() - started)


def _averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average with the warm-up min(decay, (1 + n) / (10 + n)): early weights are soon forgotten."""

    def update(average: Tensor, current: Tensor, n: Tensor | int) -> Tensor:
        d = min(decay, (1 + float(n)) / (10 + float(n)))
        return average.lerp(current, 1 - d)

    return AveragedModel(copy.deepcopy(model), avg_fn=update)
