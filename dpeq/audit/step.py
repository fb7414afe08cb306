"""The private step itself, thousands of times: with one unit of the largest influence there is, and without it.

The steps are those of the ordinary training loop on a network of a few weights: its coins, its clipping, its noise and
its normaliser under the plan's constants, every block of steps under a fresh key from the operating system. The two
sets of units are neighbours: a few made-up images, with or without one canary (:mod:`dpeq.audit.canaries`), whose
clipped gradient has length C along one direction. The score of a step is the released sum along that direction. The
images are made up, so nobody's privacy is spent. What the scores prove is said by :mod:`dpeq.privacy.audit.steps`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dpeq.audit.canaries import CanaryNetwork, with_canaries
from dpeq.audit.listening import listen
from dpeq.data.images import ImageSet
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import train
from dpeq.training.state import OptimizerSettings

__all__ = ["repeat_step"]

Array = npt.NDArray[np.float64]

_UNITS, _EDGE = 4, 2  # of the others' made-up images
_MEMORY = "/dev/shm"
_SHORT_LIVED = _MEMORY if os.access(_MEMORY, os.W_OK) else None
"""Where ledgers of made-up images lie: they need not outlive a crash, and a disk would take longer than the step."""


def repeat_step(
    plan: PrivacyPlan,
    *,
    canary: bool,
    after: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Array:
    """``plan.steps`` repetitions of one step: a score each, higher where the canary is.

    Args:
        plan: as :func:`~dpeq.privacy.audit.steps.many_steps_of` makes it.
        canary: whether the neighbour with the canary is trained on.
        after: called after each repetition.
        should_stop: asked between two; the scores so far are returned.
    """
    small = nn.Sequential(nn.Flatten(), nn.Linear(_EDGE * _EDGE, 2))
    network = CanaryNetwork(small, 1, 2, plan.max_grad_norm)
    units = torch.arange(_UNITS)
    pixels = torch.randn(_UNITS, 1, _EDGE, _EDGE)
    others = ImageSet(pixels, units % 2, units, _UNITS, ("a", "b"), "made-up", plan.unit)
    scores: list[float] = []
    # Weights hardly move, so that thousands of steps are repetitions of one.
    settings = OptimizerSettings(lr=1e-6, ema_decay=0.0)
    with (
        tempfile.TemporaryDirectory(dir=_SHORT_LIVED) as folder,
        Ledger.create(Path(folder) / "ledger.jsonl", plan) as ledger,
        listen(network, plan, lambda heard: scores.append(float(heard[0]))),
    ):
        train(
            network,
            with_canaries(others, [0] if canary else [], network.label),
            plan,
            ledger,
            settings,
            Randomness.create(None),
            device=torch.device("cpu"),
            after_step=lambda state, record: after(),
            should_stop=should_stop,
        )
    return np.array(scores, dtype=np.float64)
