"""Masks and their images: those whose paths or headers give the same values to the placeholders of the pattern."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from dpeq.data.index.check import ImageCheck
from dpeq.data.index.images import Image, Mask
from dpeq.data.readers.source import Refused

__all__ = ["on_one_grid", "pair"]

_TOLERANCE = 1e-3  # mm, of each corner's place in an affine


def pair(images: Iterable[Image], masks: Sequence[Mask], names: Sequence[str]) -> list[tuple[Mask, Refused]]:
    """Gives every image its mask and returns the masks that belong to none, with the reason.

    Args:
        names: the placeholders of the masks' pattern.
    """
    owners: dict[tuple[str, ...], list[Image]] = defaultdict(list)
    for image in images:
        owners[tuple(image.ids.get(name, "") for name in names)].append(image)
    told: dict[tuple[str, ...], list[Mask]] = defaultdict(list)
    for mask in masks:
        told[tuple(mask.values[name] for name in names)].append(mask)
    alone = []
    for key, group in told.items():
        found = owners.get(key, [])
        if len(group) > 1:
            alone += [(mask, Refused("several masks of one image")) for mask in group]
        elif len(found) > 1:
            alone.append((group[0], Refused("a mask that fits several images")))
        elif not found:
            alone.append((group[0], Refused("a mask without an image")))
        else:
            found[0].mask = group[0]
    return alone


def on_one_grid(image: ImageCheck, mask: ImageCheck) -> bool:
    """Whether voxel (x, y, z) of both is the same place: equal sizes, and equal affines where both have one."""
    if image.shape[1:] != mask.shape[1:]:
        return False
    if "none" in (image.geometry, mask.geometry):
        return image.geometry == mask.geometry
    return bool(np.allclose(image.affine, mask.affine, rtol=0, atol=_TOLERANCE))
