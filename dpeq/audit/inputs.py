"""Canaries that anybody could slip in: images that look like no other, with labels that mean nothing.

Each is an image of normal numbers with a label drawn at random, which only memory can get right. The attacker has the
released network alone and asks it about every canary (Steinke et al. 2023, arXiv 2305.08846, black box). Such canaries
go the whole way of a real image, through every layer of the network and its gradient, but their gradients are not the
worst there are and much is lost on the way to the weights: an audit finds far less than with gradient canaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpeq.audit.asking import log_odds
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError

__all__ = ["InputCanaries"]


@dataclass(frozen=True)
class InputCanaries:
    """``images`` float32 ``[canaries, channels, *spatial]`` and ``labels`` int64 ``[canaries]``; both are public."""

    images: Tensor
    labels: Tensor

    @classmethod
    def make(cls, canaries: int, shape: Sequence[int], classes: int) -> InputCanaries:
        """The same ones every time, so that an audit can go on. Raises :class:`ConfigError` for no canary at all."""
        if canaries < 1:
            raise ConfigError(f"There are {canaries} canaries; give 1 at least.")
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(canaries, *shape, generator=generator)
        return cls(images, torch.randint(classes, (canaries,), generator=generator))

    def beside(self, images: ImageSet, included: Sequence[int]) -> ImageSet:
        """``images`` with one unit of one image more for each canary number in ``included``."""
        chosen, count = torch.tensor(included, dtype=torch.int64), len(included)
        return images.of_units(
            torch.cat([images.images, self.images[chosen]]),
            torch.cat([images.labels, self.labels[chosen]]),
            torch.cat([images.units, torch.arange(images.n_units, images.n_units + count)]),
            images.n_units + count,
        )

    def scores(self, network: nn.Module, device: torch.device) -> npt.NDArray[np.float64]:
        """How much surer ``network`` is of each canary's label than of other canaries with that label: ``[canaries]``.

        By the log-odds of the label. A network that calls all noise by one name would otherwise tell labels apart, and
        nothing else.
        """
        sure = log_odds(network, self.images, self.labels, device)
        for label in sorted(set(self.labels.tolist())):
            same = self.labels == label
            sure[same] -= sure[same].mean()
        return sure.numpy()
