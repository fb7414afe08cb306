"""How long a plan will take here: two private physical batches on made-up images are timed."""

from __future__ import annotations

import time

import torch
from torch import nn

from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan

__all__ = ["estimate_seconds"]


def estimate_seconds(
    model: nn.Module, shape: tuple[int, ...], plan: PrivacyPlan, *, physical_units: int, device: torch.device
) -> float:
    """Seconds of training, from the second of two private batches of random images ``[units * views, *shape]``."""
    units = min(physical_units, plan.expected_batch_size)
    wrapped = UnitGradSampleModule(model.to(device).train(), plan.views)
    optimizer = PlanOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), plan)
    x = torch.randn(units * plan.views, *shape, device=device)
    y = torch.zeros(len(x), dtype=torch.int64, device=device)
    elapsed = 0.0
    for _ in range(2):
        started = time.perf_counter()
        wrapped.backward(wrapped(x), y)
        optimizer.accumulate()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
    wrapped.detach()
    return elapsed / units * plan.expected_batch_size * plan.steps
