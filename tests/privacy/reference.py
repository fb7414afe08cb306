"""Private training as the paper has it, written a second time and as plainly as can be.

Unit by unit, view by view, one backward pass of torch for each; everything else is numpy in double precision. Nothing
here is shared with the product: neither its privacy code nor Opacus is imported, and what it is told are the public
constants of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Draw = tuple[list[tuple[int, list[int]]], Array]
"""What one step draws: the sampled units, each with the images that are its views, and standard normal noise."""


@dataclass(frozen=True)
class Constants:
    """The public constants: q, sigma, C, B, K, T and the learning rate."""

    rate: float
    sigma: float
    clip: float
    batch: int
    views: int
    steps: int
    lr: float


@dataclass(frozen=True)
class Data:
    """Images ``[N, 1, H, W]``, their labels, and for each unit the indices of its images."""

    images: torch.Tensor
    labels: torch.Tensor
    units: Sequence[Sequence[int]]


class Reference:
    """One training: mean over a unit's views, clip, sum, noise, divide by B, step.

    Its methods are the places at which a subclass can make a mistake.
    """

    def __init__(self, network: nn.Module, data: Data, constants: Constants) -> None:
        self.network, self.data, self.constants = network, data, constants

    def train(self, draw: Callable[[int], Draw]) -> Array:
        """The weights ``[T + 1, d]`` before the first step and after each; ``draw(t)`` is what step t draws."""
        weights = [self._read()]
        for step in range(1, self.constants.steps + 1):
            sampled, xi = draw(step)
            update = self.update([[self.gradient(image) for image in views] for _, views in sampled], xi)
            weights.append(weights[-1] - self.constants.lr * update)
            self._write(weights[-1])
        return np.stack(weights)

    def update(self, units: list[list[Array]], xi: Array) -> Array:
        """The noised mean ``[d]`` of the views' gradients of every sampled unit."""
        total = np.zeros_like(xi)
        for views in units:
            total += self.contribution(views)
        c = self.constants
        return (total + c.sigma * c.clip * xi) / c.batch

    def contribution(self, views: list[Array]) -> Array:
        """What one unit adds to the sum."""
        return self.clipped(sum(views, np.zeros_like(views[0])) / len(views))

    def clipped(self, gradient: Array) -> Array:
        norm = float(np.sqrt((gradient**2).sum()))
        return gradient if norm <= self.constants.clip else gradient * (self.constants.clip / norm)

    def gradient(self, image: int) -> Array:
        """The gradient of the cross-entropy at one image, alone in its batch."""
        logits = self.network(self.data.images[image : image + 1])
        loss = nn.functional.cross_entropy(logits, self.data.labels[image : image + 1])
        pieces = torch.autograd.grad(loss, list(self.network.parameters()))
        return np.concatenate([piece.numpy().ravel() for piece in pieces])

    def _read(self) -> Array:
        return np.concatenate([p.detach().numpy().ravel() for p in self.network.parameters()])

    def _write(self, weights: Array) -> None:
        with torch.no_grad():
            at = 0
            for p in self.network.parameters():
                p.copy_(torch.from_numpy(weights[at : at + p.numel()]).view(p.shape))
                at += p.numel()


def draws(data: Data, constants: Constants, dimensions: int, rng: np.random.Generator) -> Callable[[int], Draw]:
    """Independent coins for every unit and step, views chosen without replacement, and fresh noise."""

    def draw(step: int) -> Draw:
        sampled = []
        for unit, images in enumerate(data.units):
            if rng.random() < constants.rate:
                order = [images[i] for i in rng.permutation(len(images))]
                sampled.append((unit, [order[k % len(order)] for k in range(constants.views)]))
        return sampled, rng.standard_normal(dimensions)

    return draw


class TooLittleNoise(Reference):
    """Ten per cent less than the accountant was told."""

    def __init__(self, network: nn.Module, data: Data, constants: Constants) -> None:
        super().__init__(network, data, replace(constants, sigma=0.9 * constants.sigma))


class MeanClipped(Reference):
    """The mean over the sampled units is clipped, and no unit."""

    def update(self, units: list[list[Array]], xi: Array) -> Array:
        c = self.constants
        total = sum((sum(views, np.zeros_like(xi)) / len(views) for views in units), np.zeros_like(xi))
        return (len(units) * self.clipped(total / max(1, len(units))) + c.sigma * c.clip * xi) / c.batch


class DividedByTheSampled(Reference):
    """The normaliser is the number of units that came."""

    def update(self, units: list[list[Array]], xi: Array) -> Array:
        return super().update(units, xi) * self.constants.batch / max(1, len(units))


class ViewsClipped(Reference):
    """Every view is clipped by itself, before the mean over them."""

    def contribution(self, views: list[Array]) -> Array:
        return sum((self.clipped(view) for view in views), np.zeros_like(views[0])) / len(views)


class NoiseDrawnOnce(Reference):
    """Every step adds the noise of the first; no step looks wrong by itself."""

    def train(self, draw: Callable[[int], Draw]) -> Array:
        noise = draw(1)[1]
        return super().train(lambda step: (draw(step)[0], noise))
