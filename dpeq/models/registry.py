"""Networks by name: presets of the architectures, twins matched to them, and any network by its import path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.cost import parameter_count
from dpeq.models.family import FamilySpec, scaled
from dpeq.models.foreign import ForeignSpec
from dpeq.models.matching import KINDS, match
from dpeq.models.partial import PartialSpec
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.models.spec import ModelSpec
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec
from dpeq.models.widths import WidthRule, reference_fields
from dpeq.nn.blocks import BlockKind
from dpeq.nn.norm import divisor_near

__all__ = ["PRESETS", "ModelChoice", "Preset", "build_model", "describe_model", "resolve_spec"]

Triple = tuple[int, int, int]
_EQUIVARIANT = ("group", "restriction", "fields", "norm_groups", "block", "depths", "resolution")
_FOREIGN = ("arguments", "replace_batch_norm", "pool_output")


@dataclass(frozen=True)
class Preset:
    """A named architecture.

    Attributes:
        spec: what is built.
        summary: one line for people.
        widths: plain channels that the fields of its stages stand for, where another group can be asked for.
    """

    spec: ModelSpec
    summary: str
    widths: tuple[float, float, float] | None = None

    @property
    def dim(self) -> int:
        return self.spec.dim


@dataclass(frozen=True)
class ModelChoice:
    """What a configuration says of the network; None keeps the preset's.

    Attributes:
        name: a preset, a kind of twin ("cnn", "wide-resnet", "vit"; with ``match``), or the import path of a class.
        group, restriction, fields, norm_groups, block, depths, resolution: of equivariant networks.
        width_rule: what stays equal when the group changes and no fields are given.
        match: the preset that a twin is made to equal.
        match_by: "parameters" or "macs".
        arguments, replace_batch_norm, pool_output: of a network by import path, see
            :class:`~dpeq.models.foreign.ForeignSpec`.
        trainable: patterns of what alone is trained, see :func:`~dpeq.models.partial.train_only`; empty for all.
    """

    name: str
    group: str | None = None
    restriction: str | None = None
    fields: Triple | None = None
    norm_groups: Triple | None = None
    block: BlockKind | None = None
    depths: Triple | None = None
    resolution: int | None = None
    width_rule: WidthRule = "parameters"
    match: str | None = None
    match_by: str = "parameters"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    replace_batch_norm: bool = False
    pool_output: bool = False
    trainable: tuple[str, ...] = ()


PRESETS: dict[str, Preset] = {
    "eqresnet9": Preset(
        ResNet9Spec("D4", "halved", (6, 13, 39), (1, 1, 3)),
        "the reference's ResNet-9: widths 16-32-64, D4, halved in the last stage",
        (16, 32, 64),
    ),
    "eqresnet9-small": Preset(
        ResNet9Spec("D4", "halved", (3, 6, 12), (1, 1, 1)),
        "the same at half the widths, about a tenth of the parameters: for CPUs and small data",
        (8, 16, 32),
    ),
    "eqresnet9-3d-tiny": Preset(
        ResNet9Spec("axial-D4", "none", (1, 2, 4), (1, 1, 1), stem_pool=True),
        "for small volumes: symmetric about the scan axis, a pooled stem, a few thousand parameters",
        (4, 8, 16),
    ),
    **{
        f"eqnet-{size}" if dim == 2 else f"eqnet-3d-{size}": Preset(
            scaled(phi, dim),
            f"the family at compound coefficient {phi}: separable blocks, all dimensions scaled as one",
        )
        for dim in (2, 3)
        for phi, size in enumerate(("xs", "s", "m", "l"))
    },
    "wide-resnet-16-4": Preset(
        WideResNetSpec(2), "conventional: Wide-ResNet-16-4 with group norm and weight standardisation"
    ),
    "vit-tiny": Preset(
        ViTSpec(2, (28, 28), (4, 4), 64, 4, 4, 128), "conventional: a small vision transformer for images of 28x28"
    ),
}


def resolve_spec(choice: ModelChoice, input_shape: tuple[int, ...], classes: int) -> ModelSpec:
    """The architecture that a configuration asks for.

    Args:
        input_shape: ``(channels, *spatial)`` of the images.
        classes: number of outputs.

    Raises:
        ConfigError: for unknown names, options that the architecture does not have, or a wrong dimension.
    """
    dim = len(input_shape) - 1
    if choice.name in KINDS:
        spec = _twin(choice, input_shape, classes)
    elif "." in choice.name or ":" in choice.name:
        _refuse(choice, (*_EQUIVARIANT, "match"))
        spec = ForeignSpec(choice.name, dim, dict(choice.arguments), choice.replace_batch_norm, choice.pool_output)
    else:
        spec = _preset(choice)
    if spec.dim != dim:
        raise ConfigError(f"Model '{choice.name}' is for {spec.dim}D images but these are {dim}D.")
    return PartialSpec(spec, choice.trainable) if choice.trainable else spec


def _twin(choice: ModelChoice, input_shape: tuple[int, ...], classes: int) -> ModelSpec:
    _refuse(choice, (*_EQUIVARIANT, *_FOREIGN))
    if choice.match is None:
        raise ConfigError(f"A '{choice.name}' is the twin of another network; name it in model.match.")
    target = resolve_spec(ModelChoice(choice.match), input_shape, classes)
    twin: ModelSpec = match(choice.name, target, input_shape[0], classes, input_shape, choice.match_by)
    return twin


def _preset(choice: ModelChoice) -> ModelSpec:
    if choice.name not in PRESETS:
        known = [*PRESETS, *KINDS]
        near = get_close_matches(choice.name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of: {', '.join(known)}, or an import path."
        raise ConfigError(f"There is no model '{choice.name}'; {hint}")
    _refuse(choice, ("match", *_FOREIGN))
    preset = PRESETS[choice.name]
    spec = preset.spec
    if isinstance(spec, ResNet9Spec):
        _refuse(choice, ("block", "depths", "resolution"))
        return _changed_resnet9(spec, preset, choice)
    if isinstance(spec, FamilySpec):
        return _changed_family(spec, choice)
    _refuse(choice, _EQUIVARIANT)
    return spec


def _changed_resnet9(spec: ResNet9Spec, preset: Preset, choice: ModelChoice) -> ModelSpec:
    restriction = choice.restriction or spec.restriction
    if choice.group is not None and choice.group != spec.group:
        whole = _of_dim(choice.group, preset, choice.name)
        if choice.restriction is None and restriction not in whole.restrictions:
            restriction = "none"  # of the preset, not of the user: a group that cannot be halved is kept whole
        kept = whole.subgroup(restriction)
        assert preset.widths is not None
        f1, f2, f3 = (reference_fields(int(w), g) for w, g in zip(preset.widths, (whole, whole, kept), strict=True))
        n1, n2, n3 = (divisor_near(f, n) for f, n in zip((f1, f2, f3), spec.norm_groups, strict=True))
        spec = replace(spec, group=choice.group, fields=(f1, f2, f3), norm_groups=(n1, n2, n3))
    group(spec.group).subgroup(restriction)  # refused here, by name
    spec = replace(spec, restriction=restriction)
    if choice.fields is not None:
        spec = replace(spec, fields=choice.fields)
    return replace(spec, norm_groups=choice.norm_groups) if choice.norm_groups is not None else spec


def _changed_family(spec: FamilySpec, choice: ModelChoice) -> ModelSpec:
    whole = group(spec.group)
    changes: dict[str, Any] = {}
    if choice.group is not None:
        changes["group"] = _of_dim(choice.group, PRESETS[choice.name], choice.name).name
    for name in ("restriction", "block", "depths", "resolution"):
        if getattr(choice, name) is not None:
            changes[name] = getattr(choice, name)
    if choice.group is not None and choice.block is None and not group(choice.group).on_grid:
        changes["block"] = "full"  # separable blocks turn filters on the grid
    widths = _plain_widths(spec)
    changed = replace(spec, **changes)
    group(changed.group).subgroup(changed.restriction)
    if whole.name != changed.group or spec.restriction != changed.restriction or choice.width_rule != "parameters":
        changed = changed.with_widths(widths, choice.width_rule)
    if choice.fields is not None:
        changed = changed.with_fields(choice.fields)
    return replace(changed, norm_groups=choice.norm_groups) if choice.norm_groups is not None else changed


def _plain_widths(spec: FamilySpec) -> tuple[float, float, float]:
    """The plain channels that have as many parameters as the fields of each stage."""
    whole = group(spec.group)
    kept = whole.subgroup(spec.restriction)
    a, b, c = (f * len(g.elements) ** 0.5 for f, g in zip(spec.fields, (whole, whole, kept), strict=True))
    return a, b, c


def _of_dim(name: str, preset: Preset, model: str) -> Any:
    chosen = group(name)
    if chosen.dim != preset.dim:
        raise ConfigError(f"Group {name} acts on {chosen.dim}D images but model '{model}' is {preset.dim}D.")
    return chosen


def _refuse(choice: ModelChoice, options: tuple[str, ...]) -> None:
    """Options that the architecture does not have are errors, not ignored."""
    for option in options:
        if getattr(choice, option):
            raise ConfigError(f"model.{option} means nothing to model '{choice.name}'; leave it out.")


def build_model(spec: ModelSpec, in_channels: int, classes: int, seed: int) -> nn.Module:
    """The network with initial weights drawn from ``seed``; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(in_channels, classes)


def describe_model(name: str, spec: ModelSpec, model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """What a report says of a network; ``input_shape`` is ``(channels, *spatial)``."""
    whole = group(spec.group)
    return {
        "name": name,
        "architecture": spec.architecture,
        "group": spec.group,
        "group_order": whole.order,
        "restriction": spec.restriction,
        "invariant_under": whole.subgroup(spec.restriction).name,
        "parameters": parameter_count(model),
        "frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "dim": whole.dim,
        "input_shape": list(input_shape),
        **spec.describe(),
    }
