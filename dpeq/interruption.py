"""Ctrl-C and SIGTERM: the first one lets training finish its step, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = ["GracefulStop"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_MOMENT = 2.0  # seconds
_NOTICE = b"\nStopping after this step; once more to leave at once.\n"


class GracefulStop:
    """Catches both signals while it is entered; calling it marks the part that can stop between two steps.

    Outside that part, and from the second signal on, a signal raises KeyboardInterrupt: that is safe too, because the
    ledger is ahead of the weights. To be entered in the main thread.

    torchrun passes on to all its processes a signal that the terminal may have sent them already: signals of one
    moment count as one, and processes beside the first leave the decision to it.

    Args:
        rank, world: this process among those of the run.

    Attributes:
        signal: the last one that came, or None.
        folder: of the run that was being trained, or None before any.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self._rank, self._world = rank, world
        self._first = 0.0
        self.signal: int | None = None
        self.folder: Path | None = None
        self._patient = False
        self._before: list[Any] = []

    def __enter__(self) -> GracefulStop:
        self._before = [signal.signal(number, self._handle) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[Callable[[], bool]]:
        """Gives the question whether training should stop."""
        self.folder, self._patient = folder, True
        try:
            yield lambda: self.signal is not None
        finally:
            self._patient = False

    @property
    def exit_code(self) -> int:
        """128 and the signal, as shells have it."""
        return 128 + (self.signal or signal.SIGINT)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._rank > 0:
            return
        now = time.monotonic()
        if self.signal is not None and self._world > 1 and now - self._first < _ONE_MOMENT:
            return
        first, self.signal = self.signal is None, number
        self._first = now if first else self._first
        if not (self._patient and first):
            raise KeyboardInterrupt
        os.write(2, _NOTICE)  # print() could meet itself: the signal may have come in the middle of one
