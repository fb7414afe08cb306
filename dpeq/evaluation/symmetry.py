"""How symmetric a trained network really is: its logits on images and on the same images turned and mirrored.

Only elements that map the pixel grid onto itself are tried, so that no interpolation is measured along with the
network.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpeq.groups import GROUP_NAMES, Element, SymmetryGroup, group

__all__ = ["MOST_IMAGES", "measure_symmetry"]

MOST_IMAGES = 256
_FORWARDS = 2048  # images times elements: large groups are measured on fewer images
_FLOOR = 1e-3  # of the size of the logits: where images hardly differ, rounding is not taken for asymmetry


def measure_symmetry(
    model: nn.Module,
    images: Tensor,
    group_name: str,
    restriction: str = "none",
    *,
    device: torch.device,
    batch: int = 64,
) -> dict[str, Any]:
    """Measures the invariance of a classifier under what its group keeps, on up to 256 images spread over ``images``.

    Let z(x) be the logits of an image less their mean over classes, which is all that a softmax sees, and s the root
    mean square distance of z(x) from its mean over the images (at least a thousandth of the root mean square of z). The
    error of an element g on an image is ``|z(g x) - z(x)| / s`` in the Euclidean norm: 0 for an invariant network,
    about 1 where turning an image changes the logits as much as taking another image.

    Args:
        model: ``[N, channels, *spatial] -> [N, classes]``; it is moved to ``device`` and put into evaluation mode.
        images: ``[N, channels, *spatial]``.
        group_name: of the network. A conventional one, and one that ends without symmetry, is measured under the
            rotations by 90 degrees, to show what a network does that nothing makes symmetric.
        restriction: what the network keeps of it on purpose, see :meth:`~dpeq.groups.SymmetryGroup.subgroup`.

    Returns:
        ``group``, under which the network is built to be invariant (None without), ``measured_on``, the group that was
        tried, the number of ``images``; ``elements``, each with its ``name``, the mean ``error`` over images and the
        ``agreement``, the share of images whose most probable class stays the same; ``worst_error``, the largest of
        any element on any image; ``agreement``, the share of images whose class stays the same under every element;
        ``note``, sentences on what was left out and why.
    """
    whole = group(group_name)
    kept = whole.subgroup(restriction)
    symmetric = len(kept.elements) > 1
    tried = kept if symmetric else group("C4" if kept.dim == 2 else "axial-C4")
    on_grid = [e for e in tried.elements if np.array_equal(tried.matrices[e], np.rint(tried.matrices[e]))]
    elements = [e for e in on_grid if tried.act_on_grid(images[:1], e).shape == images[:1].shape]
    moved = [e for e in elements if e != 0]
    count = min(len(images), MOST_IMAGES, max(1, _FORWARDS // len(elements)))
    chosen = images[torch.linspace(0, len(images) - 1, count).round().long()]
    model.to(device).eval()
    plain = _logits(model, chosen, batch, device)
    spread = float((plain - plain.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    scale = max(spread, _FLOOR * float(plain.square().sum(dim=1).mean().sqrt())) or 1.0
    rows, worst, same = [], 0.0, torch.ones(count, dtype=torch.bool)
    for element in moved:
        turned = _logits(model, tried.act_on_grid(chosen, element), batch, device)
        errors = (turned - plain).norm(dim=1) / scale
        agrees = turned.argmax(dim=1) == plain.argmax(dim=1)
        worst, same = max(worst, float(errors.max())), same & agrees
        rows.append(
            {
                "name": _name(tried, element),
                "error": float(errors.mean()),
                "agreement": float(agrees.double().mean()),
            }
        )
    return {
        "group": kept.name if symmetric else None,
        "measured_on": _subgroup_name(tried, elements),
        "images": count,
        "elements": rows,
        "worst_error": worst,
        "agreement": float(same.double().mean()),
        "note": " ".join(_notes(whole, kept, tried, images.shape[2:], len(on_grid), len(elements))),
    }


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor, batch: int, device: torch.device) -> Tensor:
    """Less their mean over classes, float64 ``[N, classes]``."""
    rows = torch.cat([model(x.contiguous().to(device)).double().cpu() for x in images.split(batch)])
    return rows - rows.mean(dim=1, keepdim=True)


def _notes(
    whole: SymmetryGroup, kept: SymmetryGroup, tried: SymmetryGroup, spatial: torch.Size, on_grid: int, used: int
) -> list[str]:
    told = []
    if len(whole.elements) == 1:
        told.append("The network is conventional; nothing in its construction makes it symmetric.")
    elif len(kept.elements) == 1:
        told.append(f"The network begins with {whole.name} and drops all symmetry in its last stage, on purpose.")
    elif kept != whole:
        told.append(f"The network begins with {whole.name} and keeps {kept.name} in its last stage, on purpose.")
    else:
        told.append(f"The network is built to be invariant under {kept.name}.")
    if kept is not tried:
        told.append("It is measured under rotations by 90 degrees, to compare.")
    if on_grid < len(tried.elements):
        told.append(f"The other elements of {tried.name} do not map the pixel grid onto itself and were not measured.")
    if used < on_grid:
        edges = "x".join(map(str, spatial))
        told.append(f"Elements that exchange edges of different length ({edges}) were not measured.")
    return told


def _subgroup_name(tried: SymmetryGroup, elements: list[Element]) -> str:
    if len(elements) == len(tried.elements):
        return tried.name
    found = _as_set(tried.matrices[elements])
    for name in GROUP_NAMES:
        if _as_set(group(name).matrices) == found:
            return name
    return f"{len(elements)} elements of {tried.name}"


def _as_set(matrices: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(matrix.ravel().tolist()) for matrix in matrices}


def _name(tried: SymmetryGroup, element: Element) -> str:
    """What an element does to an image, in words."""
    if tried.kind == "octahedral":
        axes = []
        for row in tried.matrices[element]:
            source = int(np.flatnonzero(row)[0])
            axes.append(f"{'-' if row[source] < 0 else ''}{'xyz'[source]}")
        return f"(x, y, z) to ({', '.join(axes)})"
    mirrored, turns = divmod(element, tried.rotations)
    words = ["mirror left to right"] if mirrored else []
    if turns:
        about = " about the scan axis" if tried.dim == 3 else ""
        angle = 360 * turns / tried.rotations
        assert math.isclose(angle, round(angle)), "elements on the grid turn by whole quarters"
        words.append(f"rotation by {round(angle)} degrees{about}")
    return ", then ".join(words)
