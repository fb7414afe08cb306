"""The family: equivariant residual networks scaled by one coefficient, in 2D and 3D, with full or separable blocks.

Depth, width, input resolution and the order of the group grow together, after EfficientNet (Tan & Le 2019, arXiv
1905.11946), which scales the first three: at coefficient phi, depth by ALPHA^phi, width by BETA^phi, resolution by
GAMMA^phi and the group's order by DELTA^phi. The factors come from a grid of short private trainings at one budget of
arithmetic: ``python -m benchmarks.scaling_grid``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup, group
from dpeq.models.widths import WidthRule, fields_for
from dpeq.nn.blocks import BLOCKS, BlockKind, ConvBlock
from dpeq.nn.fields import FieldType, hidden_representation
from dpeq.nn.invariant import InvariantPool, Restrict
from dpeq.nn.norm import EquivariantGroupNorm, divisor_near
from dpeq.nn.resize import Resize

__all__ = ["BASE", "COMPOUND", "Base", "Compound", "FamilyNet", "FamilySpec", "scaled"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class FamilySpec:
    """Everything that fixes a network of the family.

    Attributes:
        group: name of the symmetry group.
        restriction: what is left of it in the last stage.
        fields: fields of the three stages; the last ones belong to the restricted group.
        norm_groups: norm groups of the three stages; each must divide its fields.
        depths: residual units of the three stages, two convolutions each; 0 leaves a stage its first convolution.
        block: "full" or "separable".
        resolution: pixels of the longest edge that images are scaled to; None takes them as they come.
        stem_pool: halve the image right after the first convolution.
    """

    group: str
    restriction: str
    fields: Triple
    norm_groups: Triple
    depths: Triple = (1, 1, 1)
    block: BlockKind = "separable"
    resolution: int | None = None
    stem_pool: bool = False

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ConfigError(f"There is no block '{self.block}'; use one of: {', '.join(BLOCKS)}.")
        if self.block == "separable" and not group(self.group).on_grid:
            raise ConfigError(
                f"Separable blocks turn filters on the pixel grid, which {self.group} does not keep; use block 'full'."
            )

    @property
    def dim(self) -> int:
        return group(self.group).dim

    @property
    def architecture(self) -> str:
        kind = "equivariant residual network" if len(group(self.group).elements) > 1 else "residual CNN"
        return f"{kind}, {self.block} blocks"

    def build(self, in_channels: int, classes: int) -> FamilyNet:
        return FamilyNet(self, in_channels, classes)

    def describe(self) -> dict[str, Any]:
        return {
            "fields": list(self.fields),
            "norm": "equivariant group norm",
            "norm_groups": list(self.norm_groups),
            "depths": list(self.depths),
            "block": self.block,
            "resolution": self.resolution,
            "activation": "GELU",
            "stem_pool": self.stem_pool,
        }

    def with_widths(self, widths: tuple[float, float, float], rule: WidthRule = "parameters") -> FamilySpec:
        """The same network as wide as so many plain channels, by a rule of :mod:`dpeq.models.widths`."""
        whole = group(self.group)
        kept = whole.subgroup(self.restriction)
        a, b, c = (fields_for(w, g, rule, self.block) for w, g in zip(widths, (whole, whole, kept), strict=True))
        return self.with_fields((a, b, c))

    def with_fields(self, fields: Triple) -> FamilySpec:
        """The same network with other fields, and norm groups of at least 4 of them."""
        return replace(self, fields=fields, norm_groups=_norm_groups(fields))


def _norm_groups(fields: Triple) -> Triple:
    """At least 4 fields to a norm group: fewer erase how strong a feature is."""
    a, b, c = (divisor_near(f, f // 4) for f in fields)
    return a, b, c


def _block(
    in_type: FieldType, out_type: FieldType, norm_groups: int, kind: BlockKind, *, pool: bool = False
) -> ConvBlock:
    """The family's block. GELU: smooth as the reference's Mish, at a fifth of its time on a CPU."""
    return ConvBlock(in_type, out_type, norm_groups=norm_groups, pool=pool, kind=kind, activation="gelu")


class _Residual(nn.Module):
    """Two blocks beside the identity, normalised after the sum (ScaleNorm of Klause et al. 2022, arXiv 2203.00324)."""

    def __init__(self, field_type: FieldType, norm_groups: int, kind: BlockKind) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_block(field_type, field_type, norm_groups, kind) for _ in range(2)))
        self.scale_norm = EquivariantGroupNorm(field_type, norm_groups, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale_norm(self.blocks(x) + x)


class FamilyNet(nn.Module):
    """``[N, in_channels, *spatial] -> logits [N, classes]``, invariant under what the last stage keeps of the group.

    Args:
        spec: the architecture.
        in_channels: scalar input channels.
        classes: number of outputs.
    """

    def __init__(self, spec: FamilySpec, in_channels: int, classes: int) -> None:
        super().__init__()
        self.spec = spec
        whole = group(spec.group)
        kept = whole.subgroup(spec.restriction)
        hidden = hidden_representation(whole)
        current = FieldType(whole, "trivial", in_channels)
        first = FieldType(whole, hidden, spec.fields[0])
        self.resize: nn.Module = Resize(spec.resolution) if spec.resolution else nn.Identity()
        self.stem = _block(current, first, spec.norm_groups[0], spec.block, pool=spec.stem_pool)
        current = first
        stages: list[nn.Module] = []
        for number, (fields, groups, depth) in enumerate(zip(spec.fields, spec.norm_groups, spec.depths, strict=True)):
            layers: list[nn.Module] = []
            remaining = kept if number == len(spec.fields) - 1 else whole
            if remaining != current.group:
                restrict = Restrict(current, remaining)
                layers.append(restrict)
                current = restrict.out_type
            target = FieldType(remaining, hidden_representation(remaining), fields)
            if number > 0:
                layers.append(_block(current, target, groups, spec.block, pool=True))
            current = target
            layers += [_Residual(current, groups, spec.block) for _ in range(depth)]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.invariant = InvariantPool(current)
        self.classifier = nn.Linear(self.invariant.features, classes)

    @property
    def symmetry(self) -> SymmetryGroup:
        """The group under which the logits are invariant."""
        return group(self.spec.group).subgroup(self.spec.restriction)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.invariant(self.stages(self.stem(self.resize(x)))))


@dataclass(frozen=True)
class Compound:
    """Factors per unit of the compound coefficient phi."""

    depth: float
    width: float
    resolution: float
    order: float


@dataclass(frozen=True)
class Base:
    """The network at coefficient 0: plain channels and residual units per stage, pixels, order of the group."""

    widths: tuple[float, float, float]
    depth: float
    resolution: float
    order: float


BASE = Base(widths=(12.0, 24.0, 36.0), depth=1.0, resolution=20.0, order=2.0)
# The winner of `python -m benchmarks.scaling_grid` at four times the arithmetic, which is two units of phi, so a square
# root each; the figures, and how little they differ, are in docs/measurements/scaling_grid.json.
COMPOUND = Compound(depth=1.4**0.5, width=1.25**0.5, resolution=1.4**0.5, order=2.0**0.5)
_BY_ORDER = {
    2: {1: "trivial", 2: "D1", 4: "D2", 8: "D4"},
    3: {1: "trivial-3d", 2: "mirror", 4: "axial-D2", 8: "axial-D4"},
}


def scaled(phi: float, dim: int, *, block: BlockKind = "separable", compound: Compound = COMPOUND) -> FamilySpec:
    """The network of the family at compound coefficient ``phi`` (0 is XS, 3 is L).

    The group is the dihedral one of the nearest order that keeps the grid (8 at most), as wide as plain channels with
    as many parameters.
    """
    orders = _BY_ORDER[dim]
    wish = math.floor(math.log2(BASE.order * compound.order**phi) + 0.5 + 1e-9)  # halves up, so S is not XS
    order = 2 ** min(wish, int(math.log2(max(orders))))
    depth = BASE.depth * compound.depth**phi
    first, second, third = (round(depth * share) for share in (0.75, 1.0, 1.25))  # coarse maps are cheaper to deepen
    resolution = 4 * round(BASE.resolution * compound.resolution**phi / 4)  # halves twice without a remainder
    depths = (first, second, third)
    draft = FamilySpec(orders[order], "none", (1, 1, 1), (1, 1, 1), depths, block, resolution, stem_pool=True)
    w1, w2, w3 = (w * compound.width**phi for w in BASE.widths)
    return draft.with_widths((w1, w2, w3))
