"""What an attacker hears who sees every noised sum that a training releases: one number per canary and step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpeq.audit.canaries import CanaryNetwork
from dpeq.privacy.plan import PrivacyPlan

__all__ = ["listen", "log_likelihood_ratio"]

Array = npt.NDArray[np.float64]


@contextmanager
def listen(network: CanaryNetwork, plan: PrivacyPlan, heard: Callable[[Array], None]) -> Iterator[None]:
    """Calls ``heard`` at every step with the sum released along each canary's direction over sigma * C: [canaries].

    What is heard is the gradient that the optimiser is handed, noised and normalised, times the public batch size: what
    the weights become follows from it. Of a canary that was not sampled it is standard normal; one that was adds
    1 / sigma (per-layer clipping: that over the square root of the number of parameter tensors).
    """
    weight, direction = network.drawer.weight, network.direction
    unit = plan.noise_multiplier * plan.max_grad_norm / plan.expected_batch_size

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not any(p is weight for group in optimizer.param_groups for p in group["params"]):
            return
        assert weight.grad is not None
        released = weight.grad.detach().double().cpu()
        heard((direction @ released / unit).numpy())

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()


def log_likelihood_ratio(heard: Array, plan: PrivacyPlan, tensors: int) -> Array:
    """ln of how much likelier each number of a step is if the canary is in the data, sampled at the plan's rate.

    The sum over steps is the best score there is (Neyman and Pearson): ``tensors`` is the number of parameter tensors.
    """
    shift = 1.0 / plan.noise_multiplier
    if plan.clipping == "per_layer":
        shift /= math.sqrt(tensors)
    sampled = shift * heard - shift * shift / 2
    if plan.sample_rate == 1.0:
        return sampled
    return np.logaddexp(math.log1p(-plan.sample_rate), math.log(plan.sample_rate) + sampled)
