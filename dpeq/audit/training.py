"""One more training on the same data, for an audit: the ordinary loop, a ledger of its own, and what must not be lost.

The weights are thrown away. What it spent is spent all the same, and its ledger says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dpeq.audit.kept import Heard, KeptState, write_state
from dpeq.data.images import ImageSet
from dpeq.data.views import Augment
from dpeq.privacy.composition import AUDIT_LEDGER
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import StepRecord, TrainingResult, train
from dpeq.training.state import OptimizerSettings, TrainingState

__all__ = ["Course", "train_aside"]


@dataclass(frozen=True)
class Course:
    """How an audit trains: as :func:`dpeq.training.loop.train` has it, and every how many steps its state is kept."""

    plan: PrivacyPlan
    settings: OptimizerSettings
    device: torch.device
    augment: Augment | None = None
    images_per_unit: int | None = None
    save_every: int = 20


def train_aside(
    network: nn.Module,
    units: ImageSet,
    course: Course,
    folder: Path,
    heard: Heard,
    before: KeptState | None,
    *,
    purpose: str,
    after_step: Callable[[StepRecord], None],
    should_stop: Callable[[], bool],
) -> TrainingResult:
    """Trains ``network`` in place on ``units``, or goes on with it from ``before``.

    ``heard`` is kept beside the weights before the first step, every ``save_every`` steps, at the end, and at a stop.
    Steps between the last save and a crash are spent, and not taken again; ``heard.steps`` counts those that went into
    the weights. ``purpose`` goes into the ledger.

    Raises what :func:`dpeq.training.loop.train` raises.
    """
    plan = course.plan
    states: list[TrainingState] = []

    def begin(state: TrainingState) -> None:
        states.append(state)
        if before is None:
            write_state(folder, state, heard)  # the coins must not be lost
        else:
            state.restore(before.step, before.tensors)

    def stepped(state: TrainingState, record: StepRecord) -> None:
        heard.steps += 1
        if record.step % course.save_every == 0 or record.step == plan.steps:
            write_state(folder, state, heard)
        after_step(record)

    path = folder / AUDIT_LEDGER
    with Ledger.open(path, plan) if path.exists() else Ledger.create(path, plan) as ledger:
        if not any(note["kind"] == "audit" for note in ledger.notes):
            ledger.note("audit", units=len(heard.included), detail=f"{purpose}: an audit, not for release.")
        result = train(
            network,
            units,
            plan,
            ledger,
            course.settings,
            Randomness.create(None),
            device=course.device,
            augment=course.augment,
            images_per_unit=course.images_per_unit,
            resume=begin,
            after_step=stepped,
            should_stop=should_stop,
        )
        if result.stopped:
            write_state(folder, states[0], heard)
    return result
