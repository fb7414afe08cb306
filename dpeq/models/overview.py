"""All networks that a configuration can name, with what each costs on images of one size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from dpeq.errors import ConfigError
from dpeq.models.cost import measure
from dpeq.models.registry import PRESETS, Preset, build_model, describe_model

__all__ = ["EDGE", "overview"]

EDGE = 28  # pixels along every axis, where no size is asked for


def overview(
    size: tuple[int, ...] | None = None,
    *,
    sigma: float = 1.0,
    max_grad_norm: float = 1.0,
    presets: Mapping[str, Preset] | None = None,
) -> list[dict[str, Any]]:
    """One row per network: its description, its cost for grey images and two classes, and the length of its noise.

    Args:
        size: edges of the images; one number stands for all axes, and several leave out networks of other dimensions.
        sigma, max_grad_norm: of the noise, for ``noise_norm``.
        presets: what to list; all of the registry by default.

    Returns:
        JSON-able rows: what :func:`describe_model` says, then ``macs``, ``activation_bytes``,
        ``per_unit_gradient_bytes``, ``noise_norm`` and ``refused``. A network that does not take images of this size
        has its sentence there, and None for what could not be measured; ``refused`` is None for all others.

    Raises:
        ConfigError: for a noise that no run could have.
    """
    if not (0 <= sigma < math.inf and 0 < max_grad_norm < math.inf):
        raise ConfigError(
            f"Noise with sigma {sigma:g} and C {max_grad_norm:g} cannot be; give a sigma of at least 0 and a positive "
            "clipping norm, both finite."
        )
    rows = []
    for name, preset in (PRESETS if presets is None else presets).items():
        if size is None or len(size) in (1, preset.dim):
            rows.append(_row(name, preset, size, sigma, max_grad_norm))
    return rows


def _row(name: str, preset: Preset, size: tuple[int, ...] | None, sigma: float, max_grad_norm: float) -> dict[str, Any]:
    spec: Any = preset.spec
    spatial = (EDGE,) * preset.dim if size is None else tuple(size) * (preset.dim if len(size) == 1 else 1)
    fixed = is_dataclass(spec) and "image_size" in {field.name for field in fields(spec)}
    if fixed and size is None:
        spatial = spec.image_size
    model = build_model(spec, 1, 2, seed=0)
    row = describe_model(name, spec, model, (1, *spatial))
    unknown = dict.fromkeys(("macs", "activation_bytes", "per_unit_gradient_bytes", "noise_norm"))
    try:
        if fixed and spatial != spec.image_size:
            spec = replace(spec, image_size=spatial)
            model = build_model(spec, 1, 2, seed=0)
            row = describe_model(name, spec, model, (1, *spatial))
        cost = measure(model, (1, *spatial))
    except ConfigError as error:
        return {**row, **unknown, "refused": str(error)}
    return {**row, **cost.to_dict(), "noise_norm": cost.noise_norm(sigma, max_grad_norm), "refused": None}
