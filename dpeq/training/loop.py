"""The private training loop: sample, clip, noise, step; the ledger is written before each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpeq.data.images import ImageSet
from dpeq.data.sampling import UnitViews, poisson_sample
from dpeq.data.views import Augment, Draws
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.optimizer import GradientStatistics
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.privacy.state import StateGuard
from dpeq.training.distributed import Ranks
from dpeq.training.state import OptimizerSettings, TrainingState

__all__ = ["PrivateRecord", "StepRecord", "TrainingResult", "train"]


@dataclass(frozen=True)
class PrivateRecord:
    """What one step's gradients looked like. **Private**: no noise covers it; only for eyes that may see the data.

    Attributes:
        units: how many were sampled.
        loss: mean loss of their views.
        gradient_norm: mean norm of their gradients before clipping.
        clipped: fraction of them above the clipping norm.
        not_finite: how many counted as zero because their gradient is not finite.
    """

    units: int
    loss: float
    gradient_norm: float
    clipped: float
    not_finite: int


@dataclass(frozen=True)
class StepRecord:
    """What may be shown after a step.

    Attributes:
        step: logical steps so far.
        lr: learning rate of this one.
        seconds: that it took.
        units_per_second: the plan's expected batch over ``seconds``; the true number of units is private.
        private: only when private metrics were asked for, and on rank 0.
    """

    step: int
    lr: float
    seconds: float
    units_per_second: float
    private: PrivateRecord | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves behind: averaged weights, last weights, steps taken, seconds, and whether it was stopped."""

    averaged: nn.Module
    last: nn.Module
    steps: int
    seconds: float
    stopped: bool = False


def train(
    model: nn.Module,
    images: ImageSet,
    plan: PrivacyPlan,
    ledger: Ledger | None,
    settings: OptimizerSettings,
    randomness: Randomness | None,
    *,
    device: torch.device,
    augment: Augment | None = None,
    images_per_unit: int | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen
    resume: Callable[[TrainingState], None] | None = None,
    after_step: Callable[[TrainingState, StepRecord], None] = lambda state, record: None,
    should_stop: Callable[[], bool] = lambda: False,
    log_private_metrics: bool = False,
) -> TrainingResult:
    """Trains ``model`` in place for all steps of the plan; an exhausted ledger leaves it as it is.

    Args:
        ledger, randomness: on rank 0; None on every other rank, none of which may draw or spend.
        augment: makes the views of each sampled row; without it a view is an image as it is.
        images_per_unit: most different images of a unit in one step; all of the plan's views by default.
        ranks: the processes that share every step.
        resume: puts the state of a checkpoint into the fresh one, on rank 0, from where the others get it; a ledger
            that has steps needs it.
        after_step: called on every rank once a step is complete, to save or to show it.
        should_stop: asked on rank 0 between steps.
        log_private_metrics: fill :attr:`StepRecord.private`.

    Raises:
        BudgetError: from the ledger, before a step that the plan does not allow.
        ConfigError: when the network cannot be trained privately, or plan, ledger and data do not belong together, or
            the ranks were not given the same.
        RankError: when another rank is gone.
    """
    if ranks.leads == (ledger is None) or ranks.leads == (randomness is None):
        raise ValueError("rank 0 holds the ledger and the key, and no other rank does.")
    _check(images, plan, ledger, resume is not None)
    started = time.monotonic()
    model.to(device).train()
    if ranks.world > 1:
        _agree(ranks, model, images, plan, settings, (augment, images_per_unit), log_private_metrics)
    ranks.align(model)
    state = TrainingState(model, plan, settings)
    if resume is not None:
        resume(state)
    if ranks.world > 1:
        _share(ranks, state)
    weights = None if settings.class_weights is None else torch.tensor(settings.class_weights, device=device)
    reproducible = randomness is not None and randomness.seed is not None
    views = UnitViews(images.units, images.n_units, plan.views, images_per_unit)
    deck = _Deck(views, plan, augment, repeats=resume is not None and reproducible)
    wrapped = UnitGradSampleModule(model, plan.views)
    guard = StateGuard(model)
    stopped = False
    try:
        while True:
            clock = time.monotonic()
            hand = deck.deal(state, ledger, randomness, ranks, should_stop)
            if hand.step == 0:
                stopped = hand.stopped
                break
            torch.manual_seed(hand.seed ^ ranks.rank)  # a step that is repeated drops out the same
            loss = torch.zeros((), device=device)
            state.optimizer.statistics = GradientStatistics() if log_private_metrics else None
            own = hand.share(ranks, plan.views)
            for part in own.split(settings.physical_units * plan.views) if len(own) else ():
                rows = hand.rows[part]
                x, y = images.images[rows].to(device), images.labels[rows].to(device)
                if augment is not None and hand.draws is not None:
                    x = augment(x, hand.draws[part])
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    logits = wrapped(x)
                loss += wrapped.backward(logits, y, weights)
                state.optimizer.accumulate()
            guard.check()  # before the sum leaves this rank: what fails here ends the step for all
            total = ranks.add_up(state.optimizer.take_sum())
            if ranks.leads:
                assert randomness is not None
                total = state.optimizer.noised(total, randomness.stream("noise", hand.step))
            state.apply(hand.step, ranks.spread(total))
            guard.take()
            seconds = time.monotonic() - clock
            after_step(
                state,
                StepRecord(
                    hand.step,
                    settings.lr_at(hand.step, plan.steps),
                    seconds,
                    plan.expected_batch_size / max(seconds, 1e-9),
                    _private_record(state.optimizer.statistics, loss, ranks),
                ),
            )
    finally:
        wrapped.detach()
    seconds = time.monotonic() - started
    return TrainingResult(state.averaged.module.eval(), model.eval(), state.step, seconds, stopped)


@dataclass(frozen=True)
class _Hand:
    """What one step looks at, the same on every rank; step 0 is the end."""

    step: int
    stopped: bool
    seed: int  # of torch's generator, for layers that are random themselves (dropout); it protects nobody
    rows: Tensor  # int64 [units * views], images
    draws: Draws | None  # of the same rows

    def share(self, ranks: Ranks, views: int) -> Tensor:
        """Positions in ``rows`` of the units of this rank."""
        positions = torch.arange(len(self.rows)).view(-1, views)
        return positions[ranks.rank :: ranks.world].flatten()


class _Deck:
    """Deals every step its units and views; rank 0 spends the step first and draws, all others listen."""

    def __init__(self, views: UnitViews, plan: PrivacyPlan, augment: Augment | None, *, repeats: bool) -> None:
        self.views, self.plan, self.augment, self.repeats = views, plan, augment, repeats

    def deal(
        self,
        state: TrainingState,
        ledger: Ledger | None,
        randomness: Randomness | None,
        ranks: Ranks,
        should_stop: Callable[[], bool],
    ) -> _Hand:
        if not ranks.leads:
            return self._hear(ranks)
        assert ledger is not None
        assert randomness is not None
        # What a reproducible run repeats after a crash was spent before it: the same coins, the same noise, the same
        # result. With a key that is gone such steps are lost: they are spent, and never taken again.
        step = (state.step if self.repeats else max(state.step, ledger.steps)) + 1
        over = step > self.plan.steps
        if over or should_stop():
            return self._say(_Hand(0, not over, 0, torch.empty(0, dtype=torch.int64), None), ranks)
        if step > ledger.steps:
            ledger.spend(step)  # before anything is read: a crash from here on can only over-count
        sampled = poisson_sample(self.views.n_units, self.plan.sample_rate, randomness.stream("sampling", step))
        # All rows are chosen at once, so that the physical batch size cannot change which.
        rows = self.views.choose(sampled, randomness.stream("views", step))
        draws = None if self.augment is None else self.augment.draw(randomness.stream("augment", step), len(rows))
        seed = int(randomness.stream("layers", step).words(1)[0]) >> 1
        return self._say(_Hand(step, False, seed, rows, draws), ranks)

    def _say(self, hand: _Hand, ranks: Ranks) -> _Hand:
        ranks.tell(torch.cat([torch.tensor([hand.step, int(hand.stopped), hand.seed]), hand.rows]))
        if hand.draws is not None:
            ranks.tell(hand.draws.values.flatten())
        return hand

    def _hear(self, ranks: Ranks) -> _Hand:
        message = ranks.tell(None)
        step, stopped, seed, rows = int(message[0]), bool(message[1]), int(message[2]), message[3:]
        draws = None
        if self.augment is not None and step:
            values = ranks.tell(None)  # of no rows, too: rank 0 says it
            draws = Draws(values.view(len(rows), -1) if len(rows) else values.view(0, 0))
        return _Hand(step, stopped, seed, rows, draws)


def _check(images: ImageSet, plan: PrivacyPlan, ledger: Ledger | None, resumes: bool) -> None:
    if not isinstance(images, ImageSet):
        raise ConfigError(
            f"Training takes an ImageSet, not a {type(images).__name__}: units must enter a step by independent coins "
            "of one rate, which loaders with shuffled or weighted samplers do not do; weight classes by class_weights."
        )
    if ledger is not None and ledger.plan != plan:
        raise ConfigError("The ledger was opened for another plan; open it with the plan of this training.")
    if ledger is not None and not resumes and 0 < ledger.steps < plan.steps:
        raise ConfigError(
            f"The ledger holds {ledger.steps} of {plan.steps} steps of a run that began before; resume that run, or "
            "start a new one."
        )
    if plan.unit != images.unit:
        raise ConfigError(
            f"The plan protects one {plan.unit} but the data is grouped by {images.unit}; "
            f"set data.unit to '{plan.unit}'."
        )


def _agree(
    ranks: Ranks,
    model: nn.Module,
    images: ImageSet,
    plan: PrivacyPlan,
    settings: OptimizerSettings,
    looks: tuple[Augment | None, int | None],
    log_private_metrics: bool,
) -> None:
    """Refuses ranks that would not compute parts of the same sum, or would wait for each other in vain."""
    ranks.agree("privacy plan", plan.sha256)
    ranks.agree("training data", f"{images.sha256()} {images.n_units} {images.unit} {images.classes}")
    augment, images_per_unit = looks
    views = None if augment is None else sorted(vars(augment).items())
    ranks.agree("configuration", f"{settings} {views} {images_per_unit} {log_private_metrics}")
    named = [*model.named_parameters(), *model.named_buffers()]
    parts = [(name, tuple(t.shape), t.dtype, t.requires_grad) for name, t in named]
    ranks.agree("network", f"{parts} {[(name, type(layer).__qualname__) for name, layer in model.named_modules()]}")


def _share(ranks: Ranks, state: TrainingState) -> None:
    """Gives every rank the state of rank 0, who alone has read a checkpoint."""
    step = int(ranks.tell(torch.tensor([state.step]) if ranks.leads else None)[0])
    tensors = ranks.hand_out(state.tensors() if ranks.leads else None)
    if not ranks.leads:
        state.restore(step, tensors)


def _private_record(statistics: GradientStatistics | None, loss: Tensor, ranks: Ranks) -> PrivateRecord | None:
    if statistics is None:
        return None
    s = statistics
    mine = torch.tensor([s.units, float(loss), s.norms, s.clipped, s.not_finite], dtype=torch.float64)
    units, lost, norms, clipped, not_finite = ranks.add_up(mine).tolist()
    if not ranks.leads:
        return None
    finite = max(1.0, units - not_finite)
    return PrivateRecord(int(units), lost / max(1.0, units), norms / finite, clipped / finite, int(not_finite))
