"""A walk over a tree of any size: entries come one by one, and nothing that cannot be walked stops it.

Folders that wait are kept by a queue of the caller's, on disk for a large tree. Links to files are followed; links to
folders are not, so that no loop can be entered; a folder that shows twice (mounted into itself) is walked once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpeq.errors import DataError

__all__ = ["Entry", "Folders", "walk"]


@dataclass(frozen=True)
class Entry:
    """One file, or something that cannot be taken as one: then ``reason`` says why.

    Attributes:
        path: relative to the root, with slashes; bytes that are not valid text are surrogates (PEP 383).
        size, mtime_ns, ctime_ns, inode: of the file behind a link.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    reason: str = ""
    detail: str = ""


class Folders(Protocol):
    """A queue of folders that remembers what it has ever held."""

    def push(self, path: str, device: int, inode: int) -> bool:
        """False for a folder that was pushed before."""

    def pop(self) -> str | None:
        """The folder that has waited longest, or None."""


def walk(root: Path, folders: Folders, leave_out: Iterable[Path] = ()) -> Iterator[Entry]:
    """Every entry under ``root`` but folders and ``leave_out``, in no particular order.

    Raises:
        DataError: when the root itself cannot be read.
    """
    try:
        status = root.stat()
        os.scandir(root).close()
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}); mend its permissions.") from error
    hidden = _places(leave_out)
    folders.push("", status.st_dev, status.st_ino)
    while (where := folders.pop()) is not None:
        try:
            yield from _walk_one(root, where, folders, hidden)
        except OSError as error:
            yield Entry(where, reason="a folder that cannot be read", detail=str(error.strerror))


def _walk_one(root: Path, where: str, folders: Folders, hidden: dict[tuple[int, int], set[str]]) -> Iterator[Entry]:
    place = root / where if where else root
    status = place.stat()
    names = hidden.get((status.st_dev, status.st_ino), set())
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name not in names:
                found = _look(entry, f"{where}/{entry.name}" if where else entry.name, folders)
                if found is not None:
                    yield found


def _look(entry: os.DirEntry[str], path: str, folders: Folders) -> Entry | None:
    try:
        if entry.is_dir(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            new = folders.push(path, status.st_dev, status.st_ino)
            return None if new else Entry(path, reason="a folder that is in the tree twice")
        link = entry.is_symlink()
        status = entry.stat()
    except FileNotFoundError:
        return Entry(path, reason="a link to nothing")
    except OSError as error:
        reason = "a link to nothing" if entry.is_symlink() else "cannot be read"  # to itself, for instance
        return Entry(path, reason=reason, detail=str(error.strerror))
    if stat.S_ISREG(status.st_mode):
        return Entry(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if link and stat.S_ISDIR(status.st_mode):
        return Entry(path, reason="a link to a folder, which is not followed")
    return Entry(path, reason="no file (a pipe, a socket or a device)")


def _places(paths: Iterable[Path]) -> dict[tuple[int, int], set[str]]:
    """Names by the folder they are in, which is known by its inode: it may be reached by many paths."""
    places: dict[tuple[int, int], set[str]] = {}
    for path in paths:
        for parent in {path.parent, path.resolve().parent}:
            if parent.is_dir():
                status = parent.stat()
                names = places.setdefault((status.st_dev, status.st_ino), set())
                names.add(path.name if parent == path.parent else path.resolve().name)
    return places
