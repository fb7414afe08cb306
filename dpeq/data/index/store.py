"""An SQLite file for its owner alone, and what to do about the errors that SQLite raises."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from dpeq.data.private import create_private
from dpeq.errors import DataError

__all__ = ["explained", "open_store"]

_PRAGMAS = ("locking_mode=EXCLUSIVE", "synchronous=NORMAL", "temp_store=MEMORY", "cache_size=-32768")


def open_store(path: Path) -> sqlite3.Connection:
    """Without transactions of Python's own. Raises :class:`sqlite3.Error`."""
    if not path.exists():
        os.close(create_private(path))
    path.chmod(0o600)
    base = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        for pragma in _PRAGMAS:
            base.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        base.close()
        raise
    return base


def explained(error: sqlite3.Error, path: Path) -> DataError:
    """What SQLite says names tables at most, never what is in them."""
    text = str(error)
    if "locked" in text:
        return DataError(f"Another 'dpeq index' is using {path}; wait until it is done.")
    if isinstance(error, sqlite3.OperationalError) and "no such" not in text:
        return DataError(
            f"{path} cannot be read or written ({text}); make room on its disk or mend its permissions, and index "
            "again: what was found out stays known."
        )
    return DataError(f"{path} is damaged ({text}); delete it, and every file is read again.")
