"""Nothing in a network may remember the data: what is released is protected by the step's noise alone.

Clipping and noise cover what the optimiser does. A network that writes into its own parameters or buffers while it
looks at images (running averages, code books, data-dependent initialisation) would carry them out unprotected.
"""

from __future__ import annotations

from torch import Tensor, nn

from dpeq.errors import ConfigError

__all__ = ["StateGuard"]


class StateGuard:
    """What a network holds may change by the optimiser's noised step alone: everything in it is released.

    Covers parameters (frozen ones too) and buffers of any type, by value: ``.data`` leaves no mark on a version.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.take()

    def _state(self) -> dict[str, Tensor]:
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: t.detach() for name, t in named}

    def take(self) -> None:
        self.kept = {name: t.clone() for name, t in self._state().items()}

    def check(self) -> None:
        """Raises ConfigError when anything has changed, come or gone since the last :meth:`take`."""
        now = self._state()
        for name in sorted(now.keys() | self.kept.keys()):
            if name not in now or name not in self.kept or not _same(now[name], self.kept[name]):
                raise ConfigError(
                    f"'{name}' is changed by the forward pass, from data and without noise; use a layer that keeps "
                    "no state."
                )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
