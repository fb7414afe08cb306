"""What a training holds between two steps: weights, their average, the optimiser; and how it is saved and restored."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dpeq.errors import ConfigError
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan

__all__ = ["OptimizerSettings", "TrainingState"]


@dataclass(frozen=True)
class OptimizerSettings:
    """Public constants of the optimiser. None of them moves the guarantee: all act on the noised sum.

    Attributes:
        lr: learning rate on the normalised, noised sum.
        optimizer: "sgd", or "adam" (Kingma & Ba 2015; its second moment sees the noise too).
        momentum: of SGD; Adam has its own.
        schedule: of the learning rate over the plan's logical steps: "constant", or down to zero by "cosine" or
            "linear".
        warmup_steps: first logical steps, over which the learning rate rises linearly.
        ema_decay: decay of the averaged weights that are evaluated (post-processing, costs no epsilon).
        physical_units: units whose gradients are held in memory at once; changes memory, never the result.
        precision: "fp32", or "bf16" for forward and backward pass; clipping, sums and noise stay in single and double.
        class_weights: public constants that multiply the loss of each class; never computed from private labels.
    """

    lr: float
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    ema_decay: float = 0.99
    physical_units: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    class_weights: tuple[float, ...] | None = None

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of logical step ``step`` of ``steps``, counted from 1."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        done = (step - self.warmup_steps - 1) / max(1, steps - self.warmup_steps)
        factor = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}
        return self.lr * factor[self.schedule]

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over the trainable parameters of ``model``.

        Raises:
            ConfigError: when everything is frozen.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("Every parameter of the network is frozen; leave something to train.")
        if self.optimizer == "adam":
            return torch.optim.Adam(trained, self.lr)
        return torch.optim.SGD(trained, self.lr, self.momentum)


class TrainingState:
    """Weights, averaged weights and optimiser of a run under ``plan``.

    Attributes:
        step: logical steps that went into the weights.
        model: trained in place.
        averaged: exponential moving average, with the warm-up min(decay, (1 + n) / (10 + n)): early weights are soon
            forgotten.
        optimizer: the private mechanism around the optimiser.
    """

    def __init__(self, model: nn.Module, plan: PrivacyPlan, settings: OptimizerSettings) -> None:
        self.step = 0
        self.model, self.plan, self.settings = model, plan, settings
        self._inner = settings.build(model)
        self.optimizer = PlanOptimizer(self._inner, plan)

        def update(average: Tensor, current: Tensor, n: Tensor | int) -> Tensor:
            d = min(settings.ema_decay, (1 + float(n)) / (10 + float(n)))
            return average.lerp(current, 1 - d)

        self.averaged = AveragedModel(copy.deepcopy(model), avg_fn=update)

    def apply(self, step: int, total: Tensor) -> None:
        """One update by the noised sum ``total`` of logical step ``step``."""
        for group in self._inner.param_groups:
            group["lr"] = self.settings.lr_at(step, self.plan.steps)
        self.optimizer.apply(total)
        self.averaged.update_parameters(self.model)
        self.step = step

    def tensors(self) -> dict[str, Tensor]:
        """Everything that :meth:`restore` needs, by name, on the CPU."""
        found = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        found |= {f"averaged.{name}": t for name, t in self.averaged.state_dict().items()}
        for number, values in self._inner.state_dict()["state"].items():
            for name, value in values.items():
                if value is not None:
                    found[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
        return {name: t.detach().cpu().clone().contiguous() for name, t in found.items()}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Goes back to what :meth:`tensors` said after ``step``.

        Raises:
            ConfigError: when the tensors belong to another network or optimiser.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
            self.averaged.load_state_dict(part("averaged."))
        except RuntimeError as error:
            raise ConfigError(
                f"The checkpoint belongs to another network ({error}); resume the run it is of."
            ) from error
        inner = self._inner.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for name, t in part("optimizer.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = t
        inner["state"] = state
        self._inner.load_state_dict(inner)
        self.step = step
