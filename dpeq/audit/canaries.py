"""Canaries: units whose clipped gradient is known, each on coordinates of its own, trained by the ordinary loop.

A canary is a unit of the training set like any other: the loop tosses its coin, deals its rows, clips its gradient,
adds the noise and divides. To know that gradient beforehand, the network gets a drawer of weights beside it, a column
for each canary, that only this canary's loss touches. What the drawer puts out has the value 0 whatever its weights
have become, and a gradient, so a canary's own is always the same: far longer than C, along a direction of its column.
This is the strongest unit there can be, the "Dirac" canary of Nasr et al. 2023 (arXiv 2302.07956) and Steinke et al.
2023 (arXiv 2305.08846).

Which row is a canary is written into one more channel of the images: 0 is none, c + 1 is canary c. Canaries change no
gradient of another unit and no weight outside the drawer. They see what happens between a unit's gradient and the
released sum; that the gradients of the network's own layers are each unit's alone is what the dry step examines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpeq.data.images import ImageSet
from dpeq.data.sampling import Uniform
from dpeq.data.views import Augment, Draws
from dpeq.errors import ConfigError

__all__ = ["CanaryNetwork", "MarkedAugment", "with_canaries"]

LONGER = 1000.0
"""How many times C a canary's gradient is long at least, before it is clipped."""

_MOST = 1 << 20  # numbers that single precision holds exactly, with room


class CanaryNetwork(nn.Module):
    """``network`` with a drawer for ``canaries``; takes its images with one more channel, the mark, behind the others.

    Args:
        classes: of the network's logits.
        max_grad_norm: C, above 0.
        class_weights: of the loss, as in :class:`~dpeq.training.state.OptimizerSettings`.

    Attributes:
        drawer: weights ``[classes, canaries]``, zero at first.
        label: of every canary; the class of the largest weight.
        direction: float64 ``[classes]`` of length 1, along which a canary's gradient lies in its column.
    """

    def __init__(
        self,
        network: nn.Module,
        canaries: int,
        classes: int,
        max_grad_norm: float,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= canaries <= _MOST:
            raise ConfigError(f"There are {canaries} canaries; give a number from 1 to {_MOST}.")
        weights = [1.0] * classes if class_weights is None else list(class_weights)
        self.label = max(range(classes), key=lambda k: weights[k])
        slope = torch.full((classes,), 1.0 / classes, dtype=torch.float64)  # of the cross-entropy, at equal logits
        slope[self.label] -= 1.0
        length = float(torch.linalg.vector_norm(slope))
        self.direction = slope / length
        # A power of two, which half precision holds as well.
        self._input = 2.0 ** math.ceil(math.log2(LONGER * max_grad_norm / (length * weights[self.label])))
        self.network = network
        self.drawer = nn.Linear(canaries, classes, bias=False)
        nn.init.zeros_(self.drawer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[rows, classes]`` of images ``[rows, channels + 1, *spatial]``: 0 for a canary."""
        marks = x[:, -1].flatten(1)[:, 0].round().long()
        numbers = torch.arange(1, self.drawer.in_features + 1, device=x.device)
        drawn = self.drawer((marks[:, None] == numbers).to(x.dtype) * self._input)
        logits = self.network(x[:, :-1].contiguous())
        shown: Tensor = logits * (marks == 0)[:, None].to(logits.dtype) + (drawn - drawn.detach()).to(logits.dtype)
        return shown


class MarkedAugment(Augment):
    """Random views of all channels but the last, which holds the mark."""

    def __init__(self, inner: Augment) -> None:
        self.inner = inner

    def draw(self, keys: Uniform, rows: int) -> Draws:
        return self.inner.draw(keys, rows)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        return torch.cat([self.inner(x[:, :-1].contiguous(), draws), x[:, -1:]], dim=1)


def with_canaries(images: ImageSet, included: Sequence[int], label: int) -> ImageSet:
    """``images`` with a channel of marks, and one unit of one image more for each canary number in ``included``.

    A canary's image is made of normal numbers, the same for all: blank ones can have gradients that are not finite.
    """
    marked = torch.cat([images.images, torch.zeros_like(images.images[:, :1])], dim=1)
    count = len(included)
    one = torch.randn(marked.shape[1:], generator=torch.Generator().manual_seed(0))
    rows = one.expand(count, *one.shape).clone()
    rows[:, -1] = (torch.tensor(included, dtype=torch.float32) + 1).view(-1, *[1] * (rows.dim() - 2))
    return images.of_units(
        torch.cat([marked, rows]),
        torch.cat([images.labels, torch.full((count,), label, dtype=torch.int64)]),
        torch.cat([images.units, torch.arange(images.n_units, images.n_units + count)]),
        images.n_units + count,
    )
