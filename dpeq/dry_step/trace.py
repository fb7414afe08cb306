"""A forward pass under observation: which layer runs, how often, and what goes in and comes out of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Trace", "first_to_mix", "near", "tensors_in"]


Passage = tuple[str, list[Tensor], list[Tensor]]  # a layer's name, what went in, what came out


class Trace:
    """Watches a forward pass: who is running, how often each was called and, if asked, what went in and came out."""

    def __init__(self, model: nn.Module, *, keep: bool = False) -> None:
        self.model, self.keep = model, keep
        self.running: list[str] = []
        self.calls: dict[str, int] = {}
        self.seen: list[Passage] = []
        self.output: list[Tensor] = []
        self.handles: list[Any] = []

    @property
    def innermost(self) -> str:
        """The layer that was running when the pass ended; empty for the network itself."""
        return self.running[-1] if self.running else ""

    def __enter__(self) -> Trace:
        for name, layer in self.model.named_modules():
            self.handles.append(layer.register_forward_pre_hook(self._enters(name)))
            self.handles.append(layer.register_forward_hook(self._leaves(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enters(self, name: str) -> Any:
        return lambda layer, inputs: self.running.append(name)

    def _leaves(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            self.running.pop()
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.keep:
                # Copies: an in-place layer behind would overwrite them.
                before, after = ([t.detach().clone() for t in tensors_in(value)] for value in (inputs, output))
                self.seen.append((name, before, after))

        return hook


def first_to_mix(a: list[Passage], b: list[Passage], rows: int, views: int) -> str:
    """The innermost layer whose first unit came out changed although it went in the same."""

    def mine(tensors: list[Tensor]) -> list[Tensor]:
        return [t[: t.shape[0] // rows * views] for t in tensors if t.dim() and t.shape[0] % rows == 0]

    for (name, before, after), (_, other_before, other_after) in zip(a, b, strict=False):
        if near(mine(before), mine(other_before)) and not near(mine(after), mine(other_after)):
            return name
    return ""


def near(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=1e-5, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


def tensors_in(value: Any) -> list[Tensor]:
    """All floating-point tensors in a nested output."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors_in(part)] if isinstance(value, (list, tuple)) else []
