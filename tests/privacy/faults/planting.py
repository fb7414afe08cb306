"""How a fault is planted: in place of the product's own functions, for as long as a test asks.

Nothing in the product knows of faults; each runs the real code where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from dpeq.training import loop

__all__ = ["Fault", "Planting", "planted"]


class Planting:
    """One fault while it is switched on: what it replaces, and how often it was reached."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch, self.reached = patch, 0

    def replace(self, owner: Any, name: str, wrong: Callable[..., Any]) -> None:
        """``wrong`` is given what it replaces, then the arguments."""
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return wrong(real, *arguments, **options)

        self._patch.setattr(owner, name, call)

    def reach(self) -> None:
        self.reached += 1

    def remember(self) -> dict[str, Any]:
        """What training is given, for faults that look at what they should not: "images" and "plan"."""
        known: dict[str, Any] = {}

        def check(real: Any, images: Any, plan: Any, *others: Any) -> Any:
            known.update(images=images, plan=plan)
            return real(images, plan, *others)

        self.replace(loop, "_check", check)
        return known


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        name: as the table has it.
        breaks: what it does to the guarantee.
        plant: switches it on.
        guard: the one that must notice it, and
        says: a pattern of what that guard says.
    """

    name: str
    breaks: str
    plant: Callable[[Planting], None]
    guard: str
    says: str


@contextmanager
def planted(fault: Fault) -> Iterator[Planting]:
    with pytest.MonkeyPatch.context() as patch:
        planting = Planting(patch)
        fault.plant(planting)
        yield planting
