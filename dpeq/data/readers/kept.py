"""What was decoded of the last file, kept until another one is asked for: many images lie in one compressed stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["Kept"]

_Key = tuple[str, int, int, int]


class Kept:
    """One array per process, of one file; a file of another size, time of change or inode is another one.

    Threads may share it: each sees either what another one kept or what it made itself.
    """

    def __init__(self) -> None:
        self._last: tuple[_Key, np.ndarray] | None = None

    def get(self, path: Path, status: os.stat_result, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array that ``make`` gives for this file; whoever takes it must not write into it."""
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
        last = self._last
        if last is None or last[0] != key:
            self._last = None  # two files at once would be twice the memory
            last = (key, make())
            self._last = last
        return last[1]
