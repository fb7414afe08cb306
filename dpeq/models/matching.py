"""Twins of a given size: a conventional network with as many parameters, or as many multiply-accumulates, as another.

A comparison between an equivariant network and a conventional one says something only if neither is simply larger.
:func:`match` searches the widths of a CNN, a Wide-ResNet or a vision transformer: first one common scale, then single
steps of the single widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from dpeq.errors import ConfigError
from dpeq.models.cost import count_macs, parameter_count
from dpeq.models.spec import ModelSpec
from dpeq.models.twins import cnn_twin
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec
from dpeq.nn.norm import divisor_near

__all__ = ["KINDS", "TOLERANCE", "match"]

KINDS = ("cnn", "wide-resnet", "vit")
TOLERANCE = {"parameters": 0.05, "macs": 0.10}
_GOOD_ENOUGH = {"parameters": 0.01, "macs": 0.03}  # where the search stops looking for something nearer
_LARGEST_SCALE = 2.0**12
_APPROACHES = 5


@dataclass(frozen=True)
class _Family:
    """A kind of twin: one spec per scale, growing with it, and the specs a single step away."""

    at: Callable[[float], Any]
    around: Callable[[Any], Iterator[Any]]


def match(
    kind: str, target: ModelSpec, in_channels: int, classes: int, input_shape: tuple[int, ...], by: str = "parameters"
) -> Any:
    """The spec of a ``kind`` of twin with about the parameters, or multiply-accumulates per image, of ``target``.

    Args:
        kind: "cnn" (the target's blocks without symmetry), "wide-resnet" (depth 16) or "vit".
        target: spec of the network to be compared with.
        input_shape: ``(in_channels, *spatial)`` of one image.
        by: "parameters" (within 5 %) or "macs" (within 10 %).

    Raises:
        ConfigError: for another kind or measure, or when no width comes near enough; the nearest is named.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no twin '{kind}'; use one of: {', '.join(KINDS)}.")
    if by not in TOLERANCE:
        raise ConfigError(f"A twin cannot be matched by '{by}'; use one of: {', '.join(TOLERANCE)}.")
    if input_shape[0] != in_channels or len(input_shape) != target.dim + 1:
        raise ConfigError(
            f"Images of shape {list(input_shape)} do not go with a {target.dim}D network of {in_channels} channels."
        )
    known: dict[Any, int] = {}

    def size(spec: Any) -> int:
        if spec not in known:
            model = _on_meta(spec, in_channels, classes)
            known[spec] = parameter_count(model) if by == "parameters" else count_macs(model, input_shape)
        return known[spec]

    goal = size(target)

    def error(spec: Any) -> float:
        return abs(size(spec) / goal - 1)

    family = _family(kind, target, input_shape[1:])
    enough = _GOOD_ENOUGH[by]
    best = _descend(family, _approach(family, size, error, goal, enough), error, enough)
    if error(best) > TOLERANCE[by]:
        unit = "parameters" if by == "parameters" else "multiply-accumulates"
        raise ConfigError(
            f"No {kind} twin has within {TOLERANCE[by]:.0%} of {goal:,} {unit}; the nearest has {size(best):,}: "
            "match by the other measure, or compare with a larger network."
        )
    return best


def _approach(
    family: _Family, size: Callable[[Any], int], error: Callable[[Any], float], goal: int, enough: float
) -> Any:
    """The nearest spec of one common scale: sizes grow about as its square, so a few steps of that rule are enough."""
    scale, tried = 1.0, []
    while len(tried) < _APPROACHES:
        spec = family.at(scale)
        if spec in tried:
            break
        tried.append(spec)
        if error(spec) <= enough:
            break
        scale = min(_LARGEST_SCALE, max(1 / _LARGEST_SCALE, scale * math.sqrt(goal / size(spec))))
    return min(tried, key=error)


def _descend(family: _Family, start: Any, error: Callable[[Any], float], enough: float) -> Any:
    """Single steps towards the goal, until it is near enough or no step comes nearer."""
    best, moved = start, True
    while moved and error(best) > enough:
        moved = False
        for spec in family.around(best):
            if error(spec) < error(best):
                best, moved = spec, True
                break
    return best


def _on_meta(spec: Any, in_channels: int, classes: int) -> nn.Module:
    """The network without its weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return spec.build(in_channels, classes).to("meta").eval()


def _family(kind: str, target: Any, spatial: tuple[int, ...]) -> _Family:
    if kind == "cnn":
        return _cnn(target)
    return _wide_resnet(len(spatial)) if kind == "wide-resnet" else _vit(spatial)


def _cnn(target: Any) -> _Family:
    """The target's blocks; stages keep their proportions, and the norm as many groups as divide the fields."""
    twin = cnn_twin(target)

    def with_fields(widths: tuple[int, ...]) -> Any:
        groups = tuple(divisor_near(n, most) for n, most in zip(widths, target.norm_groups, strict=True))
        return replace(twin, fields=widths, norm_groups=groups)

    def around(spec: Any) -> Iterator[Any]:
        # One stage first, then two, then all: the proportions change as little as may be.
        for steps in sorted(product((-1, 0, 1), repeat=len(spec.fields)), key=lambda steps: sum(map(abs, steps))):
            yield with_fields(tuple(max(1, n + step) for n, step in zip(spec.fields, steps, strict=True)))

    return _Family(lambda s: with_fields(tuple(max(1, round(n * s)) for n in twin.fields)), around)


def _wide_resnet(dim: int) -> _Family:
    """Depth 16; a scale of 1 is Wide-ResNet-16-1, and the first convolution starts no wider than the first stage."""

    first: dict[tuple[int, ...], WideResNetSpec] = {}  # many factors round to the same widths: one stands for all

    def with_width(width: float, base: int) -> WideResNetSpec:
        spec = WideResNetSpec(dim, base=base, widen=round(max(width, 0.5) / base, 4))
        return first.setdefault(spec.widths, spec)

    def at(scale: float) -> WideResNetSpec:
        width = round(16 * scale * 8) / 8  # so fine that one step moves one stage by one channel
        return with_width(width, max(2, min(16, round(width))))

    def around(spec: WideResNetSpec) -> Iterator[WideResNetSpec]:
        width = spec.base * spec.widen
        steps = [sign * size for size in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0) for sign in (1, -1)]
        for base, step in product((0, 1, -1, 2, -2, 4, -4, 8), [0.0, *steps]):
            yield with_width(width + step, max(2, spec.base + base))

    return _Family(at, around)


def _vit(spatial: tuple[int, ...]) -> _Family:
    """Four blocks, 4 heads (2 where 4 do not divide), an MLP about twice as wide as a token, 64 tokens at most."""
    most = 8 if len(spatial) == 2 else 4  # tokens along an axis
    patch = tuple(edge // divisor_near(edge, most) for edge in spatial)

    def with_widths(hidden: int, mlp: int) -> ViTSpec:
        return ViTSpec(len(spatial), spatial, patch, hidden, layers=4, heads=2 if hidden % 4 else 4, mlp=mlp)

    def at(scale: float) -> ViTSpec:
        hidden = 4 * round(16 * scale) if scale >= 0.5 else 2 * max(1, round(32 * scale))
        return with_widths(hidden, 2 * hidden)

    def around(spec: ViTSpec) -> Iterator[ViTSpec]:
        grain = 4 if spec.hidden >= 32 else 2
        for change, step in product((0, -grain, grain), (1, -1, 4, -4, 16, -16, 64, -64)):
            hidden = max(2, spec.hidden + change)
            # The MLP stays between one and four times as wide as a token, as transformers are.
            yield with_widths(hidden, min(4 * hidden, max(hidden, spec.mlp + step)))

    return _Family(at, around)
