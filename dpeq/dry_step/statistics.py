"""Layers that keep statistics of what they see, named and set aside so that the rest of a network can be examined."""

from __future__ import annotations

import math

from torch import nn

from dpeq.dry_step.findings import Finding
from dpeq.nn.norm import divisor_near

__all__ = ["set_statistics_aside"]


def set_statistics_aside(model: nn.Module) -> dict[str, Finding]:
    """Replaces, in place, norms with running statistics by stand-ins without, and makes other buffers plain attributes.

    Returns:
        for every layer that was changed the verdict "refused", with why and the mend.
    """
    found: dict[str, Finding] = {}
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    # The most groups, up to 8, that divide the channels of every batch norm: one setting often serves all.
    groups = divisor_near(math.gcd(*(layer.num_features for layer in norms.values())), 8)
    for name, layer in norms.items():
        found[name] = Finding(
            "refused",
            "batch norm mixes the units of a batch and keeps statistics that no noise covers",
            f'use group norm: with MONAI norm=("group", {{"num_groups": {groups}}}), in a recipe '
            "model.replace_batch_norm: true, in a program opacus.validators.ModuleValidator.fix(model)",
        )
        _put(model, name, nn.GroupNorm(1, layer.num_features, layer.eps, affine=False))
    for name, layer in list(model.named_modules()):
        statistics = [key for key, b in layer.named_buffers(recurse=False) if b.is_floating_point()]
        if not statistics:
            continue
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
            mend = "build it with track_running_stats=False (in a recipe: model.replace_batch_norm: true)"
            _put(model, name, type(layer)(layer.num_features, layer.eps, affine=False))
        else:
            mend = "make them plain attributes if they are constants; else use a layer that keeps no state"
            for key in statistics:
                constant = layer._buffers.pop(key)
                object.__setattr__(layer, key, constant)
        why = f"it keeps numbers in buffers ({', '.join(statistics)}), which no noise covers if they follow the data"
        found[name] = Finding("refused", why, mend)
    return found


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    if name:  # a network that is nothing but a norm stays as it is, and is refused as a whole
        model.set_submodule(name, layer)
