"""Mistakes around the equation: in the sample, the network, the images and the ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpeq.data import fill as fill_module
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.training import checkpoint, loop, resume
from tests.privacy.faults import lab
from tests.privacy.faults.planting import Planting

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
        p.reach()  # the rate is kept up with the size of the data, where the plan takes a public size
        return real(n_units, min(1.0, rate * known["plan"].public_units / n_units), coins)

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
        return real(self)

    def apply(real: Any, self: Any, total: Tensor) -> None:
        if self._is_empty:
            p.reach()
        else:
            real(self, total)

    p.replace(PlanOptimizer, "take_sum", take_sum)
    p.replace(PlanOptimizer, "apply", apply)


# Network and data


class WithBatchNorm(lab.Network):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * lab.PIXELS)

    def prepared(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ByHand(lab.Network):
    def prepared(self, x: Tensor) -> Tensor:
        return (x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1.0)


class Remembering(lab.Network):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2 * lab.PIXELS), requires_grad=False)

    def prepared(self, x: Tensor) -> Tensor:
        self.mean.data.lerp_(x.detach().mean(dim=0), 0.1)
        return x


def network(kind: type[nn.Module]) -> Callable[[Planting], None]:
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


def ledger_after(owner: type, method: str) -> Callable[[Planting], None]:
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
