"""Networks by name: presets of the architectures, and a description of what was built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.resnet9 import EqResNet9, ResNet9Spec, fields_for_width

__all__ = ["PRESETS", "Preset", "build_model", "describe_model", "resolve_spec"]


@dataclass(frozen=True)
class Preset:
    """A named architecture: for ``dim``-dimensional images, with the group it was designed for."""

    dim: int
    widths: tuple[int, int, int]
    spec: ResNet9Spec
    summary: str


PRESETS: dict[str, Preset] = {
    "eqresnet9": Preset(
        2,
        (16, 32, 64),
        ResNet9Spec("D4", "halved", (6, 13, 39), (1, 1, 3)),
        "the reference's ResNet-9: widths 16-32-64, D4, halved in the last stage",
    ),
    "eqresnet9-small": Preset(
        2,
        (8, 16, 32),
        ResNet9Spec("D4", "halved", (3, 6, 12), (1, 1, 1)),
        "the same at half the widths, about a tenth of the parameters: for CPUs and small data",
    ),
    "eqresnet9-3d-tiny": Preset(
        3,
        (4, 8, 16),
        ResNet9Spec("axial-D4", "none", (1, 2, 4), (1, 1, 1), stem_pool=True),
        "for small volumes: symmetric about the scan axis, a pooled stem, a few thousand parameters",
    ),
}


def resolve_spec(
    name: str,
    *,
    group_name: str | None = None,
    restriction: str | None = None,
    fields: tuple[int, int, int] | None = None,
    norm_groups: tuple[int, int, int] | None = None,
) -> ResNet9Spec:
    """The preset ``name`` with what the configuration changes.

    Another group without ``fields`` keeps the parameters about equal by :func:`fields_for_width`; the norm groups then
    have to be given if the preset's do not divide the new fields.

    Raises:
        ConfigError: for unknown names, or a group of the wrong dimension.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of: {', '.join(PRESETS)}."
        raise ConfigError(f"There is no model '{name}'; {hint}")
    preset = PRESETS[name]
    spec = preset.spec
    restriction = restriction or spec.restriction
    if group_name is not None and group_name != spec.group:
        chosen = group(group_name)
        if chosen.dim != preset.dim:
            raise ConfigError(f"Group {group_name} acts on {chosen.dim}D images but model '{name}' is {preset.dim}D.")
        kept = chosen.subgroup(restriction)
        w1, w2, w3 = preset.widths
        scaled = (fields_for_width(w1, chosen), fields_for_width(w2, chosen), fields_for_width(w3, kept))
        spec = replace(spec, group=group_name, fields=scaled)
    spec = replace(spec, restriction=restriction)
    if fields is not None:
        spec = replace(spec, fields=fields)
    return replace(spec, norm_groups=norm_groups) if norm_groups is not None else spec


def build_model(spec: ResNet9Spec, in_channels: int, classes: int, seed: int) -> nn.Module:
    """The network with initial weights drawn from ``seed``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EqResNet9(spec, in_channels, classes)


def describe_model(name: str, spec: ResNet9Spec, model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """What a report says of a network; ``input_shape`` is ``(channels, *spatial)``."""
    whole = group(spec.group)
    return {
        "name": name,
        "architecture": "equivariant ResNet-9",
        "group": spec.group,
        "group_order": whole.order,
        "restriction": spec.restriction,
        "invariant_under": whole.subgroup(spec.restriction).name,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "norm": "equivariant group norm",
        "norm_groups": list(spec.norm_groups),
        "fields": list(spec.fields),
        "activation": "Mish",
        "stem_pool": spec.stem_pool,
        "dim": whole.dim,
        "input_shape": list(input_shape),
    }
