"""Checks of symmetry for networks of your own: exact on the grid, honest off it.

>>> from dpeq.groups import group
>>> from dpeq.nn.steerable import SteerableConv
>>> d4 = group("D4")
>>> image, hidden = FieldType(d4, "trivial", 1), FieldType(d4, "regular", 2)
>>> assert_equivariant(SteerableConv(image, hidden), image, hidden, (9, 9))
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from dpeq.groups import Element, SymmetryGroup
from dpeq.nn.fields import FieldType

__all__ = ["assert_equivariant", "eighth_turns", "equivariance_errors", "exact_error", "smooth_images"]


def assert_equivariant(
    module: nn.Module, in_type: FieldType, out_type: FieldType | None, spatial: tuple[int, ...], tolerance: float = 1e-5
) -> None:
    """``module(g x) == g module(x)`` (or ``module(x)``: invariance, if no ``out_type``) for the elements of the group.

    Elements that keep the grid are tried on noise; the largest difference may be ``tolerance`` times the largest
    output. Of groups that have others (C8, D8, SO2, O2, axial-SO2), the rotation by 45 degrees, and the same after the
    mirror if there is one, is tried on smooth images besides: the error may be twice the interpolation error of that
    rotation, both as :func:`equivariance_errors` measures them.
    """
    group = in_type.group
    error, worst = exact_error(module, in_type, out_type, spatial)
    assert error <= tolerance, f"element {worst}: relative equivariance error {error:.2e}"
    for element in [] if group.on_grid else eighth_turns(group):
        error, interpolation = equivariance_errors(module, in_type, out_type, spatial, element)
        report = f"network {error:.2%}, interpolation of the image {interpolation:.2%}"
        assert error <= 2 * interpolation, f"{group.name}, element {element}: relative errors: {report}"


def exact_error(
    module: nn.Module, in_type: FieldType, out_type: FieldType | None, spatial: tuple[int, ...]
) -> tuple[float, Element]:
    """Largest difference over the elements that keep the grid, relative to the largest output, and whose it is."""
    group = in_type.group
    x = torch.randn(2, in_type.channels, *spatial, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        y = module(x)
        scale = float(y.abs().max())
        assert scale > 0, "a zero output is equivariant under anything"
        errors = {}
        for element in group.elements:
            if np.all(group.matrices[element] == np.rint(group.matrices[element])):
                expected = y if out_type is None else out_type.transform(y, element)
                errors[element] = float((module(in_type.transform(x, element)) - expected).abs().max()) / scale
    worst = max(errors, key=lambda element: errors[element])
    return errors[worst], worst


def eighth_turns(group: SymmetryGroup) -> list[Element]:
    """The rotation by 45 degrees and, if the group has mirrors, the same after the mirror."""
    eighth = group.rotations // 8
    return [eighth, eighth + group.rotations] if group.mirrored else [eighth]


def equivariance_errors(
    module: nn.Module,
    in_type: FieldType,
    out_type: FieldType | None,
    spatial: tuple[int, ...],
    element: Element,
    *,
    images: int = 8,
    wavelength: float = 8.0,
) -> tuple[float, float]:
    """How far ``module`` is from commuting with an element off the grid, and what interpolating that element costs.

    The images come from a formula (see :func:`smooth_images`), so the transformed image is known: it is *sampled*, not
    interpolated, and the network sees no error that the rotation made. Then, with L2 norms over all images,

    - network error: ``|f(g x) - g f(x)| / |f(x) - f(0)|``;
    - interpolation error: ``|rotate(x) - g x| / |x|``, ``rotate`` being bilinear, the usual way to turn an image.

    Both are relative to what sets the image apart from a blank one: whatever the network says of a blank image (its
    biases, what group norm makes of them, borders) would otherwise enlarge the denominator and flatter it. The error of
    an invariant module (no ``out_type``) needs no rotation of its output; feature maps are turned by quintic splines,
    whose own error is far below that of bilinear interpolation, and compared within a disc, because a rotation moves
    the corners out of the frame. A map so coarse that its waves are shorter than some 4 pixels cannot be turned by
    anything: judge a network that pools often by its logits.

    Args:
        images: number of images.
        wavelength: the finest wave in them, in pixels.
    """
    x, moved = smooth_images(in_type, spatial, element, images=images, wavelength=wavelength)
    with torch.no_grad():
        y, y_moved, blank = module(x), module(moved), module(torch.zeros_like(x[:1]))
    interpolated, disc = in_type.transform(x, element, mode="bilinear"), _disc(spatial)
    interpolation = float(((interpolated - moved) * disc).norm() / (x * disc).norm())
    disc = torch.ones(()) if out_type is None else _disc(tuple(y.shape[2:]))
    expected = y if out_type is None else _transform_by_splines(y, out_type, element)
    return float(((y_moved - expected) * disc).norm() / ((y - blank) * disc).norm()), interpolation


def smooth_images(
    in_type: FieldType, spatial: tuple[int, ...], element: Element, *, images: int, wavelength: float
) -> tuple[Tensor, Tensor]:
    """Images ``[images, channels, *spatial]`` and the same after ``element``, both sampled from their formula.

    Each is the sum of twelve Gaussians per channel, of random sign, height and place, a quarter of the wavelength
    across and twice that along a direction common to the image: two of opposite sign side by side make about one wave.
    They lie in the middle of the frame and all but vanish at its edge.
    """
    group, count = in_type.group, 12
    generator = np.random.default_rng(7)
    # Pixel centres as coordinates: images are stored [y down, x], volumes [x, y, z].
    axes = [np.arange(n) - (n - 1) / 2 for n in spatial]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    points = np.stack([grid[..., 1], -grid[..., 0]], axis=-1) if group.dim == 2 else grid
    sigma = wavelength / 4
    directions = generator.standard_normal((images, group.dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    spread = max(min(spatial[:2]) / 2 - 4 * sigma, sigma)
    places = generator.uniform(-1, 1, (images, in_type.channels, count, group.dim)) * spread / np.sqrt(2)
    heights = generator.standard_normal((images, in_type.channels, count))

    def values(at: np.ndarray) -> np.ndarray:
        total = np.zeros((images, in_type.channels, *spatial))
        for image, channel, bump in np.ndindex(images, in_type.channels, count):
            offset = at - places[image, channel, bump]
            along = offset @ directions[image]
            squares = (offset**2).sum(-1) - 0.75 * along**2
            total[image, channel] += heights[image, channel, bump] * np.exp(-squares / (2 * sigma**2))
        return total

    x, space_moved = values(points), values(points @ group.matrices[element])  # (g f)(p) = f(g^-1 p)
    fields = space_moved.reshape(images, in_type.fields, in_type.size, -1)
    moved = (in_type.rep.matrices[element] @ fields).reshape(x.shape)
    return torch.from_numpy(x).float(), torch.from_numpy(moved).float()


def _transform_by_splines(y: Tensor, field_type: FieldType, element: Element) -> Tensor:
    """The action of an element that turns or mirrors the plane of the first two spatial axes, by quintic splines."""
    turn = field_type.group.matrices[element][:2, :2]
    if field_type.group.dim == 2:
        swap = np.array([[0.0, -1.0], [1.0, 0.0]])  # (y down, x) of a point (x, y)
        turn = swap @ turn @ swap.T
    planes = y.double().movedim((2, 3), (-2, -1))
    centre = (np.array(planes.shape[-2:]) - 1) / 2
    flat = planes.reshape(-1, *planes.shape[-2:]).numpy()
    turned = [ndimage.affine_transform(p, turn.T, centre - turn.T @ centre, order=5, mode="nearest") for p in flat]
    moved = torch.from_numpy(np.stack(turned)).view(planes.shape).movedim((-2, -1), (2, 3))
    stacked = moved.reshape(len(y), field_type.fields, field_type.size, -1)
    return (torch.from_numpy(field_type.rep.matrices[element]) @ stacked).view(y.shape).to(y)


def _disc(spatial: tuple[int, ...]) -> Tensor:
    """1 within 0.85 of the largest circle in the plane of the first two axes, else 0."""
    down, across = (torch.arange(n) - (n - 1) / 2 for n in spatial[:2])
    inside = (down[:, None].square() + across.square()).sqrt() <= 0.85 * min(spatial[:2]) / 2
    return inside.float().view(*spatial[:2], *[1] * (len(spatial) - 2))
