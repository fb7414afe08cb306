"""Poisson sampling over privacy units, and the choice of each unit's images.

The amplification by sampling that the accountant assumes holds for independent coins: every unit enters every step
with probability ``sample_rate``, so the size of a batch is random, and it may be zero (Mironov, Talwar & Zhang 2019,
arXiv 1908.10530). Shuffling, or drawing a size first, is another mechanism with another epsilon.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Uniform", "UnitViews", "poisson_sample"]


class Uniform(Protocol):
    """A source of float64 numbers in (0, 1), such as :class:`dpeq.privacy.randomness.Stream`."""

    def uniform(self, *shape: int) -> Tensor: ...


def poisson_sample(n_units: int, sample_rate: float, coins: Uniform) -> Tensor:
    """Indices of the units in one step: each of ``n_units`` enters by its own coin of bias ``sample_rate``."""
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate}; use a probability in (0, 1].")
    return torch.nonzero(coins.uniform(n_units) < sample_rate).flatten()


class UnitViews:
    """Turns sampled units into rows of a batch: ``views`` images of each unit, in consecutive rows.

    A unit with at least ``images_per_unit`` images shows that many different ones, chosen at random in every step; one
    with fewer shows all of them. Its rows go round these images, so none is repeated before each was shown. A unit
    never fills more than its ``views`` rows, whatever it owns; so how many images someone has changes nothing in the
    bound on what one unit contributes.

    Args:
        units: unit of each image, int64 ``[n_images]`` with values ``0 .. n_units - 1``.
        n_units: number of units; each must own at least one image.
        views: K, the rows of one unit.
        images_per_unit: most different images of a unit in one step, at most ``views``, which is the default.
    """

    def __init__(self, units: Tensor, n_units: int, views: int, images_per_unit: int | None = None) -> None:
        counts = torch.bincount(units, minlength=n_units)
        if len(counts) != n_units or bool((counts == 0).any()):
            raise ValueError("every unit must own at least one image.")
        most = views if images_per_unit is None else images_per_unit
        if not 1 <= most <= views:
            raise ValueError(f"images_per_unit is {most}; use a number from 1 to {views}, the views of a unit.")
        self.views, self.n_units, self.images_per_unit = views, n_units, most
        self._images = torch.argsort(units, stable=True)  # images, unit by unit
        self._counts = counts
        self._starts = torch.cumsum(counts, 0) - counts

    def choose(self, sampled: Tensor, keys: Uniform) -> Tensor:
        """Image indices ``[len(sampled) * views]`` for the sampled units."""
        if len(sampled) == 0:
            return sampled.new_empty(0)
        counts, starts = self._counts[sampled], self._starts[sampled]
        widest = int(counts.max())
        # Random keys, infinite beyond a unit's own images: the argsort is a random permutation of each unit's images.
        drawn = keys.uniform(len(sampled), widest)
        drawn[torch.arange(widest) >= counts[:, None]] = torch.inf
        order = drawn.argsort(dim=1)
        turn = torch.arange(self.views) % counts.clamp(max=self.images_per_unit)[:, None]
        return self._images[starts[:, None] + order.gather(1, turn)].flatten()
