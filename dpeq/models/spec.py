"""What every architecture says of itself before it is built."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

__all__ = ["ModelSpec"]


class ModelSpec(Protocol):
    """A frozen description of a network: everything that fixes it but the image's channels and the classes."""

    @property
    def dim(self) -> int:
        """2 for images, 3 for volumes."""

    @property
    def group(self) -> str:
        """Name of the symmetry group; "trivial" or "trivial-3d" for conventional networks."""

    @property
    def restriction(self) -> str:
        """What is left of the group in the last stage; "none" keeps it."""

    @property
    def architecture(self) -> str:
        """A name for people."""

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """The network ``[N, in_channels, *spatial] -> logits [N, classes]``, weights drawn from torch's generator."""

    def describe(self) -> dict[str, Any]:
        """What a report adds: widths, depths, norm, activation."""
