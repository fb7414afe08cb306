"""How many fields stand for so many channels: fair widths across groups.

Between ``n`` and ``m`` regular fields of a group of order |G|, a full convolution has |G| free filters per pair and
|G|^2 filters' worth of arithmetic; a separable one has |G| numbers per pair and sum_rho d^3 products (see
:mod:`dpeq.nn.separable`). A plain convolution of C channels has one of each per pair. Hence, for equal parameters,
``fields = C / sqrt(|G|)``; for equal arithmetic, ``C / |G|`` (full) or ``C / sqrt(sum_rho d^3)`` (separable).
"""

from __future__ import annotations

import math
from typing import Literal

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup
from dpeq.nn.blocks import BlockKind
from dpeq.nn.fields import hidden_representation
from dpeq.nn.spectral import group_fourier
from dpeq.representations import representation

__all__ = ["WIDTH_RULES", "WidthRule", "fields_for", "reference_fields"]

WidthRule = Literal["parameters", "compute"]
WIDTH_RULES: tuple[WidthRule, ...] = ("parameters", "compute")


def fields_for(width: float, group: SymmetryGroup, rule: WidthRule = "parameters", block: BlockKind = "full") -> int:
    """Fields of ``group`` with the parameters, or the arithmetic, of ``width`` plain channels; at least 1.

    Raises:
        ConfigError: for another rule.
    """
    size = representation(group, hidden_representation(group)).size
    if rule == "parameters":
        cost: float = size
    elif rule == "compute":
        cost = size**2 if block == "full" or not group.on_grid else group_fourier(group).products
    else:
        raise ConfigError(f"There is no width rule '{rule}'; use one of: {', '.join(WIDTH_RULES)}.")
    return max(1, round(width / math.sqrt(cost)))


def reference_fields(width: int, group: SymmetryGroup) -> int:
    """The rule of the reference code (its "fix_params"): int(C sqrt(1.5 |G|) / |G|), at least 1; Hölzl et al. 2023."""
    size = representation(group, hidden_representation(group)).size
    return max(1, int(width * math.sqrt(1.5 * size) / size))
