"""Invariants that many tests check, each against something that does not share the code under test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpeq.testing import assert_equivariant, eighth_turns, equivariance_errors, smooth_images

__all__ = [
    "assert_equivariant",
    "eighth_turns",
    "equivariance_errors",
    "relative_error",
    "shared_data",
    "smooth_images",
    "unit_gradients_by_autograd",
]

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_data(*parts: str) -> Path:
    """A path in the test data folder (``$DPEQ_TEST_DATA``, else beside the repository); skips when it is missing."""
    root = Path(os.environ.get("DPEQ_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} is not here; set DPEQ_TEST_DATA to the folder that holds it")
    return path


def unit_gradients_by_autograd(model: nn.Module, x: Tensor, y: Tensor, views: int = 1) -> dict[str, Tensor]:
    """Per-unit gradients of the mean loss over a unit's views, by one plain backward pass per unit; none if frozen."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    per_unit: dict[str, list[Tensor]] = {name: [] for name in trained}
    for start in range(0, len(x), views):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x[start : start + views]), y[start : start + views])
        loss.backward()
        for name, p in trained.items():
            assert p.grad is not None, f"{name} got no gradient"
            per_unit[name].append(p.grad.clone())
    model.zero_grad()
    return {name: torch.stack(g) for name, g in per_unit.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
