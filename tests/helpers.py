"""Invariants that many tests check, each against something that does not share the code under test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from dpeq.groups import Element
from dpeq.nn.fields import FieldType

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_data(*parts: str) -> Path:
    """A path in the test data folder (``$DPEQ_TEST_DATA``, else beside the repository); skips when it is missing."""
    root = Path(os.environ.get("DPEQ_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} is not here; set DPEQ_TEST_DATA to the folder that holds it")
    return path


def assert_equivariant(
    module: nn.Module, in_type: FieldType, out_type: FieldType | None, spatial: tuple[int, ...], tolerance: float = 1e-5
) -> None:
    """``module(g x) == g module(x)`` (or ``module(x)``: invariance, if no ``out_type``) for the elements of the group.

    For groups that keep the grid every element is tried on noise, and the largest difference may be ``tolerance`` times
    the largest output. For the others a rotation by 45 degrees, and one after the mirror where there is one, are tried
    on smooth images; the error may be twice that of interpolating such a rotation (see :func:`equivariance_errors`).
    """
    group = in_type.group
    if not group.on_grid:
        eighth = group.rotations // 8
        for element in (eighth, eighth + group.rotations) if group.mirrored else (eighth,):
            error, interpolation = equivariance_errors(module, in_type, out_type, spatial, element)
            report = (
                f"{group.name}, element {element}: equivariance error {error:.2%}, interpolation {interpolation:.2%}"
            )
            assert error <= 2 * interpolation, report
        return
    torch.manual_seed(7)
    x = torch.randn(2, in_type.channels, *spatial)
    with torch.no_grad():
        y = module(x)
        scale = y.abs().max()
        assert scale > 0, "a zero output is equivariant under anything"
        for element in group.elements:
            expected = y if out_type is None else out_type.transform(y, element)
            error = (module(in_type.transform(x, element)) - expected).abs().max() / scale
            assert error <= tolerance, f"element {element}: relative equivariance error {error:.2e}"


def equivariance_errors(
    module: nn.Module,
    in_type: FieldType,
    out_type: FieldType | None,
    spatial: tuple[int, ...],
    element: Element,
    images: int = 8,
    seed: int = 7,
    wavelength: float = 8.0,
) -> tuple[float, float]:
    """How far ``module`` is from commuting with an element off the grid, and what interpolating the element costs.

    The images are sums of Gaussians, so the transformed image is known: it is *sampled*, not interpolated, and the
    network sees no error of the rotation's making. They fill the middle of the frame and vanish towards its edge.

    - Interpolation error: ``|rotate(x) - g x| / |x|`` where ``rotate`` is bilinear, the usual way to turn an image.
    - Network error: ``|module(g x) - g module(x)| / |module(x)|``. Invariant outputs (no ``out_type``) are compared
      as they are. Feature maps are turned by quintic splines, whose own error is far below bilinear interpolation's.

    All norms are L2 over a disc that rotations keep (``[N, C, *spatial]`` outside it would compare what a rotation
    moves out of the frame) and over all images; the norms in the denominators are those of the deviation from the mean
    over the images, since what all images share, such as a bias, would only make the errors look smaller.
    """
    x, moved = smooth_images(in_type, spatial, element, images, seed, wavelength)
    with torch.no_grad():
        y, y_moved = module(x), module(moved)
    interpolated = in_type.transform(x, element, mode="bilinear")
    interpolation = _relative_l2(interpolated, moved, _disc(spatial))
    if out_type is None:
        return _relative_l2(y_moved, y, None), interpolation
    return _relative_l2(y_moved, _transform_by_splines(y, out_type, element), _disc(tuple(y.shape[2:]))), interpolation


def smooth_images(
    in_type: FieldType, spatial: tuple[int, ...], element: Element, images: int, seed: int, wavelength: float
) -> tuple[Tensor, Tensor]:
    """Sums of Gaussians ``[images, channels, *spatial]`` and the same after ``element``, both sampled from the formula.

    A Gaussian's standard deviation is ``wavelength / 4`` pixels, so that two of opposite sign side by side make about
    one wave of that length; 8 pixels is the finest detail of a smooth image of 28 pixels.
    """
    group = in_type.group
    generator = np.random.default_rng(seed)
    # Pixel centres as coordinates: images are stored [y down, x], volumes [x, y, z].
    axes = [np.arange(n) - (n - 1) / 2 for n in spatial]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    points = np.stack([grid[..., 1], -grid[..., 0]], axis=-1) if group.dim == 2 else grid
    sigma, radius, count = wavelength / 4, min(spatial[:2]) / 2, 12
    where = generator.standard_normal((images, in_type.channels, count, group.dim)) * radius * 0.25
    height = generator.standard_normal((images, in_type.channels, count))

    def values(at: np.ndarray) -> np.ndarray:
        distance = ((at[None, None, None] - where.reshape(*where.shape[:3], *[1] * group.dim, group.dim)) ** 2).sum(-1)
        bumps = np.exp(-distance / (2 * sigma**2))
        return (bumps * height.reshape(*height.shape, *[1] * group.dim)).sum(axis=2)

    matrix = group.matrices[element]
    x, space_moved = values(points), values(points @ matrix)  # (g f)(p) = f(g^-1 p), and rows times g is g^-1 p
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


def _relative_l2(actual: Tensor, expected: Tensor, mask: Tensor | None) -> float:
    mask = torch.ones(()) if mask is None else mask
    return float(((actual - expected) * mask).norm() / ((expected - expected.mean(0)) * mask).norm())


def unit_gradients_by_autograd(model: nn.Module, x: Tensor, y: Tensor, views: int = 1) -> dict[str, Tensor]:
    """Per-unit gradients of the mean loss over a unit's views, by one plain backward pass per unit."""
    per_unit: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for start in range(0, len(x), views):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x[start : start + views]), y[start : start + views])
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, f"{name} got no gradient"
            per_unit[name].append(p.grad.clone())
    model.zero_grad()
    return {name: torch.stack(g) for name, g in per_unit.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
