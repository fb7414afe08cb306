"""Mistakes that training code is known for, each planted into the product's own code for as long as a test asks.

Nothing in the product knows of them: a fault replaces a function or a method, runs the real one where it can, and
notes that it was reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpeq.data import fill as fill_module
from dpeq.privacy import optimizer as optimizer_module
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.training import checkpoint, loop, resume
from dpeq.training.distributed import Ranks
from dpeq.training.state import TrainingState
from tests.privacy.faults import lab

__all__ = ["FAULTS", "Fault", "Planting", "planted"]


class Planting:
    """One fault while it is switched on: what it replaces, and how often it was reached."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch, self.reached = patch, 0

    def replace(self, owner: Any, name: str, wrong: Callable[..., Any]) -> None:
        """``wrong`` is given what it replaces, then the arguments."""
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return wrong(real, *arguments, **options)

        self._patch.setattr(owner, name, call)

    def reach(self) -> None:
        self.reached += 1

    def remember(self) -> dict[str, Any]:
        """What training is given, for faults that look at what they should not: "images" and "plan"."""
        known: dict[str, Any] = {}

        def check(real: Any, images: Any, plan: Any, *others: Any) -> Any:
            known.update(images=images, plan=plan)
            return real(images, plan, *others)

        self.replace(loop, "_check", check)
        return known


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        name: as the table has it.
        breaks: what it does to the guarantee.
        plant: switches it on.
        guard: the one that must notice it, and
        says: a pattern of what that guard says.
    """

    name: str
    breaks: str
    plant: Callable[[Planting], None]
    guard: str
    says: str


@contextmanager
def planted(fault: Fault) -> Iterator[Planting]:
    with pytest.MonkeyPatch.context() as patch:
        planting = Planting(patch)
        fault.plant(planting)
        yield planting


# Noise


def no_noise(p: Planting) -> None:
    def noised(real: Any, self: PlanOptimizer, total: Tensor, noise: Any) -> Tensor:
        p.reach()
        return total

    p.replace(PlanOptimizer, "noised", noised)


def half_the_noise(p: Planting) -> None:
    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        p.reach()
        return real(total, std=std / 2, stream=stream)  # type: ignore[no-any-return]

    p.replace(optimizer_module, "add_noise", add_noise)


def noise_of_an_epoch(p: Planting) -> None:
    def noised(real: Any, self: Any, total: Tensor, noise: Any) -> Tensor:
        step, drawn = getattr(self, "_epoch_noise", (0, None))
        if drawn is None or step % max(2, round(1 / self.plan.sample_rate)) == 0:
            drawn = real(self, torch.zeros_like(total), noise)
        else:
            p.reach()
        self._epoch_noise = step + 1, drawn
        return total + drawn

    p.replace(PlanOptimizer, "noised", noised)


def noise_over_the_images(p: Planting) -> None:
    known = p.remember()

    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        if known:  # not so in the dry step, which has no data
            p.reach()
            std *= known["plan"].expected_batch_size / len(known["images"].images)
        return real(total, std=std, stream=stream)  # type: ignore[no-any-return]

    p.replace(optimizer_module, "add_noise", add_noise)


def mean_over_the_sampled(p: Planting) -> None:
    def accumulate(real: Any, self: Any) -> None:
        self._counted = getattr(self, "_counted", 0) + len(self.params[0].grad_sample)
        real(self)

    def apply(real: Any, self: Any, total: Tensor) -> None:
        p.reach()
        counted = max(1, getattr(self, "_counted", 0))
        self._counted = 0
        real(self, total * self.plan.expected_batch_size / counted)

    p.replace(PlanOptimizer, "accumulate", accumulate)
    p.replace(PlanOptimizer, "apply", apply)


def a_share_of_the_noise(p: Planting) -> None:
    world = 1

    def add_up(real: Any, self: Ranks, total: Tensor) -> Tensor:
        nonlocal world
        world = self.world
        return real(self, total)  # type: ignore[no-any-return]

    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        if world > 1:
            p.reach()
        return real(total, std=std / world**0.5, stream=stream)  # type: ignore[no-any-return]

    p.replace(Ranks, "add_up", add_up)
    p.replace(optimizer_module, "add_noise", add_noise)


def one_number_for_all_weights(p: Planting) -> None:
    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        p.reach()
        return total + real(torch.zeros_like(total[:1]), std=std, stream=stream)  # type: ignore[no-any-return]

    p.replace(optimizer_module, "add_noise", add_noise)


# Clipping


def no_clipping(p: Planting) -> None:
    def clip_factors(real: Any, norms: Tensor, *others: Any) -> Tensor:
        p.reach()
        return torch.ones_like(norms)

    p.replace(optimizer_module, "clip_factors", clip_factors)


def clipping_by_layer(p: Planting) -> None:
    def clip_factors(real: Any, norms: Tensor, bound: float, *others: Any) -> Tensor:
        p.reach()
        return torch.cat([real(layer[None], bound, *others) for layer in norms])

    p.replace(optimizer_module, "clip_factors", clip_factors)


def clipping_the_mean(p: Planting) -> None:
    def accumulate(real: Any, self: PlanOptimizer) -> None:
        p.reach()
        units = len(self.params[0].grad_sample)
        for each in self.params:
            each.grad_sample = each.grad_sample.mean(dim=0, keepdim=True)
        before = self.take_sum()
        real(self)
        self._sum = before + self.take_sum() * units

    p.replace(PlanOptimizer, "accumulate", accumulate)


def clipping_by_view(p: Planting) -> None:
    def module(real: Any, network: nn.Module, views: int) -> Any:
        p.reach()
        return real(network, 1)

    p.replace(loop, "UnitGradSampleModule", module)


def images_as_units(p: Planting) -> None:
    def unit_views(real: Any, units: Tensor, n_units: int, *others: Any) -> Any:
        if len(units) > n_units:
            p.reach()
        return real(torch.arange(len(units)), len(units), *others)

    p.replace(loop, "UnitViews", unit_views)


# Sampling


def shuffling(p: Planting) -> None:
    left: list[int] = []

    def poisson_sample(real: Any, n_units: int, rate: float, coins: Any) -> Tensor:
        nonlocal left
        p.reach()
        size = max(1, round(n_units * rate))
        if len(left) < size or max(left) >= n_units:
            left = coins.uniform(n_units).argsort().tolist()
        batch, left = left[:size], left[size:]
        return torch.tensor(sorted(batch))

    p.replace(loop, "poisson_sample", poisson_sample)


def without_replacement(p: Planting) -> None:
    left: list[int] = []

    def poisson_sample(real: Any, n_units: int, rate: float, coins: Any) -> Tensor:
        nonlocal left
        p.reach()
        size = len(real(n_units, rate, coins))
        if len(left) < size or max(left, default=0) >= n_units:
            left = coins.uniform(n_units).argsort().tolist()
        batch, left = left[:size], left[size:]
        return torch.tensor(sorted(batch), dtype=torch.int64)

    p.replace(loop, "poisson_sample", poisson_sample)


def rate_of_the_data(p: Planting) -> None:
    known = p.remember()

    def poisson_sample(real: Any, n_units: int, rate: float, coins: Any) -> Tensor:
        p.reach()
        return real(n_units, min(1.0, known["plan"].expected_batch_size / n_units), coins)  # type: ignore[no-any-return]

    p.replace(loop, "poisson_sample", poisson_sample)


def same_coins_in_every_step(p: Planting) -> None:
    tossed: dict[tuple[int, float], Tensor] = {}

    def poisson_sample(real: Any, n_units: int, rate: float, coins: Any) -> Tensor:
        if (n_units, rate) in tossed:
            p.reach()
        return tossed.setdefault((n_units, rate), real(n_units, rate, coins))

    p.replace(loop, "poisson_sample", poisson_sample)


def weighted(p: Planting) -> None:
    known = p.remember()

    def poisson_sample(real: Any, n_units: int, rate: float, coins: Any) -> Tensor:
        p.reach()
        images = known["images"]
        labels = torch.stack([images.labels[images.units == unit][0] for unit in range(n_units)])
        frequency = torch.bincount(labels, minlength=2).double()[labels] / n_units
        return torch.nonzero(coins.uniform(n_units) < rate / (2 * frequency)).flatten()

    p.replace(loop, "poisson_sample", poisson_sample)


def empty_steps_skipped(p: Planting) -> None:
    def take_sum(real: Any, self: Any) -> Tensor:
        self._is_empty = self._sum is None
        return real(self)  # type: ignore[no-any-return]

    def apply(real: Any, self: Any, total: Tensor) -> None:
        if self._is_empty:
            p.reach()
        else:
            real(self, total)

    p.replace(PlanOptimizer, "take_sum", take_sum)
    p.replace(PlanOptimizer, "apply", apply)


# Network and data


class _WithBatchNorm(lab.Network):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * lab.PIXELS)

    def prepared(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


class _ByHand(lab.Network):
    def prepared(self, x: Tensor) -> Tensor:
        return (x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1.0)


class _Remembering(lab.Network):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2 * lab.PIXELS), requires_grad=False)

    def prepared(self, x: Tensor) -> Tensor:
        self.mean.data.lerp_(x.detach().mean(dim=0), 0.1)
        return x


def _network(kind: type[nn.Module]) -> Callable[[Planting], None]:
    def plant(p: Planting) -> None:
        def make_network(real: Any) -> nn.Module:
            p.reach()
            return kind()

        p.replace(lab, "make_network", make_network)

    return plant


def statistics_of_the_data(p: Planting) -> None:
    def fill(real: Any, make: Any, places: Any, *others: Any) -> None:
        real(make, places, *others)
        p.reach()
        every = torch.cat([place.flatten() for place in places])
        for place in places:
            place.sub_(every.mean()).div_(every.std())

    p.replace(fill_module, "fill", fill)


# The ledger


def _ledger_after(owner: type, method: str) -> Callable[[Planting], None]:
    """Lines are held back until ``method`` of ``owner`` has been called."""

    def plant(p: Planting) -> None:
        owed: list[Callable[[], None]] = []

        def spend(real: Any, self: Ledger, step: int) -> None:
            owed[:] = [lambda: real(self, step)]

        def after(real: Any, self: Any, *arguments: Any) -> Any:
            result = real(self, *arguments)
            p.reach()
            while owed:
                owed.pop()()
            return result

        p.replace(Ledger, "spend", spend)
        p.replace(owner, method, after)

    return plant


def repeating_resume(p: Planting) -> None:
    def deck(real: Any, *arguments: Any, repeats: bool) -> Any:
        p.reach()
        return real(*arguments, repeats=True)

    p.replace(loop, "_Deck", deck)


def forgetful_resume(p: Planting) -> None:
    def reopen(real: Any, folder: Path) -> Any:
        p.reach()
        start, found = real(folder)
        found.close()
        found.path.unlink()
        fresh = Ledger.create(found.path, found.plan)
        start.check_ledger(fresh)
        return start, fresh

    p.replace(resume, "reopen", reopen)


def forgetful_resume_unchecked(p: Planting) -> None:
    forgetful_resume(p)

    def find_checkpoint(real: Any, folder: Path, *others: Any) -> Any:
        p.reach()
        found = checkpoint.newest_whole(folder)
        assert found is not None
        return dataclasses.replace(found, step=0)

    p.replace(resume, "find_checkpoint", find_checkpoint)


FAULTS = (
    Fault(
        "no noise",
        "the clipped sum leaves as it is",
        no_noise,
        "noise",
        "has not the plan's variance",
    ),
    Fault(
        "half the noise",
        "sigma is half of what the accountant was told",
        half_the_noise,
        "noise",
        "has not the plan's variance",
    ),
    Fault(
        "noise drawn once per epoch",
        "the difference of two releases has no noise",
        noise_of_an_epoch,
        "noise",
        "of two steps is alike",
    ),
    Fault(
        "noise scaled by the number of images",
        "the noise shrinks as the data grows, and tells its size",
        noise_over_the_images,
        "noise",
        "has not the plan's variance",
    ),
    Fault(
        "mean over the units that were sampled",
        "the normaliser, and with it the noise, depends on who was sampled",
        mean_over_the_sampled,
        "noise",
        "has not the plan's variance",
    ),
    Fault(
        "noise on rank 0 only, scaled for two ranks",
        "half of the variance is missing",
        a_share_of_the_noise,
        "noise",
        "on two ranks has not the plan's variance",
    ),
    Fault(
        "one noise number for all weights",
        "differences of weights leave without noise",
        one_number_for_all_weights,
        "noise",
        "is alike",
    ),
    Fault(
        "no clipping",
        "one unit moves the sum without bound",
        no_clipping,
        "sensitivity",
        "moves the sum by more than C",
    ),
    Fault(
        "every layer clipped to the whole bound",
        "one unit moves the sum by C times the root of the number of layers",
        clipping_by_layer,
        "sensitivity",
        "moves the sum by more than C",
    ),
    Fault(
        "mean over units clipped",
        "one unit turns the whole clipped mean",
        clipping_the_mean,
        "sensitivity",
        "moves the sum by more than C",
    ),
    Fault(
        "views clipped one by one",
        "one unit moves the sum by K times C",
        clipping_by_view,
        "sensitivity",
        "moves the sum by more than C",
    ),
    Fault(
        "a patient's images as units of their own",
        "a patient moves the sum by C for every image, and has a coin for each",
        images_as_units,
        "sensitivity",
        "with two images moves the sum by more than C",
    ),
    Fault(
        "batches by shuffling",
        "units do not enter by independent coins, which the accountant counts on",
        shuffling,
        "sampler",
        "the sizes of batches do not vary",
    ),
    Fault(
        "batches of random sizes without replacement",
        "who was in a step is not in the next ones",
        without_replacement,
        "sampler",
        "who was in a step decides who is in a later one",
    ),
    Fault(
        "rate from the size of the data",
        "the rate tells how many there are, and is not the accountant's",
        rate_of_the_data,
        "sampler",
        "than by the plan's rate",
    ),
    Fault(
        "the same coins in every step",
        "a unit is in every step or in none, and nothing is gained by sampling",
        same_coins_in_every_step,
        "sampler",
        "more or less often than by the plan's rate",
    ),
    Fault(
        "weighted sampling",
        "units of a rare class enter more often than was accounted for",
        weighted,
        "sampler",
        "a class enters more or less often",
    ),
    Fault(
        "a batch norm",
        "statistics of the batch reach every unit's gradient, and buffers leave without noise",
        _network(_WithBatchNorm),
        "structure",
        "batch norm mixes the units of a batch",
    ),
    Fault(
        "a norm over the batch, written by hand",
        "a unit reaches the gradients of all others",
        _network(_ByHand),
        "sensitivity",
        "moves the sum by more than C",
    ),
    Fault(
        "a running mean in a frozen parameter",
        "it leaves with the weights, without noise",
        _network(_Remembering),
        "structure",
        "'mean'",
    ),
    Fault(
        "images scaled by statistics of the data set",
        "one image changes those of all others before they are clipped",
        statistics_of_the_data,
        "structure",
        "changes with the images of others",
    ),
    Fault(
        "empty steps skipped",
        "weights that stand still tell that nobody was sampled",
        empty_steps_skipped,
        "sampler",
        "a step whose sample is empty releases nothing",
    ),
    Fault(
        "ledger written after the step",
        "a crash in between forgets what was released",
        _ledger_after(TrainingState, "apply"),
        "ledger",
        "changes the weights before the ledger has its line",
    ),
    Fault(
        "ledger written after the gradients",
        "a unit that makes the step crash is tried again with other coins, until it is not in",
        _ledger_after(PlanOptimizer, "take_sum"),
        "ledger",
        "looks at the data before the ledger has its line",
    ),
    Fault(
        "resume that forgets the ledger",
        "what was released before the crash is spent again",
        forgetful_resume,
        "ledger",
        "the ledger was cut or replaced",
    ),
    Fault(
        "the same, with the check of the checkpoint taken out",
        "as above; weights of five forgotten steps go on under a new ledger",
        forgetful_resume_unchecked,
        "ledger",
        "has released more steps than its ledger holds",
    ),
    Fault(
        "resume that repeats steps under a fresh key",
        "steps since the checkpoint are released twice and spent once",
        repeating_resume,
        "ledger",
        "has released more steps than its ledger holds",
    ),
)
