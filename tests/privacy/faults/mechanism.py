"""Mistakes in the one equation: in its noise, its normaliser and its clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpeq.privacy import optimizer as optimizer_module
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.training import loop
from dpeq.training.distributed import Ranks
from tests.privacy.faults.planting import Planting

# Noise


def no_noise(p: Planting) -> None:
    def noised(real: Any, self: PlanOptimizer, total: Tensor, noise: Any) -> Tensor:
        p.reach()
        return total

    p.replace(PlanOptimizer, "noised", noised)


def half_the_noise(p: Planting) -> None:
    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        p.reach()
        return real(total, std=std / 2, stream=stream)

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
        return real(total, std=std, stream=stream)

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
        return real(self, total)

    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        if world > 1:
            p.reach()
        return real(total, std=std / world**0.5, stream=stream)

    p.replace(Ranks, "add_up", add_up)
    p.replace(optimizer_module, "add_noise", add_noise)


def one_number_for_all_weights(p: Planting) -> None:
    def add_noise(real: Any, total: Tensor, *, std: float, stream: Any) -> Tensor:
        p.reach()
        return total + real(torch.zeros_like(total[:1]), std=std, stream=stream)

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
