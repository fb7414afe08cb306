"""Invariants that many tests check, each against something that does not share the code under test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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
    """``module(g x) == g module(x)`` for every g, relative to the largest output (invariance if no out_type)."""
    torch.manual_seed(7)
    x = torch.randn(2, in_type.channels, *spatial)
    with torch.no_grad():
        y = module(x)
        scale = y.abs().max()
        assert scale > 0, "a zero output is equivariant under anything"
        for element in in_type.group.elements:
            expected = y if out_type is None else out_type.transform(y, element)
            error = (module(in_type.transform(x, element)) - expected).abs().max() / scale
            assert error <= tolerance, f"element {element}: relative equivariance error {error:.2e}"


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
