"""Equivariant layers on plain tensors, each with exact gradients per privacy unit."""

from dpeq.nn.activations import NormActivation
from dpeq.nn.layer import UnitLayer
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.position import PositionEmbedding
from dpeq.nn.separable import DepthwiseSteerableConv
from dpeq.nn.spectral import SpectralMix
from dpeq.nn.standardized import StandardizedConv
from dpeq.nn.steerable import SteerableConv

__all__ = ["UNIT_LAYERS", "UnitLayer"]

# Every trainable layer; the private engine registers each with Opacus.
UNIT_LAYERS: tuple[type[UnitLayer], ...] = (
    SteerableConv,
    EquivariantGroupNorm,
    DepthwiseSteerableConv,
    SpectralMix,
    StandardizedConv,
    PositionEmbedding,
    NormActivation,
)
