"""Files for their owner alone: what could name a patient lies beside the manifest, under names made from its stem.

Nothing in them is repeated elsewhere; ``manifest.json`` itself carries pseudonyms only.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = [
    "create_private",
    "key_path",
    "own_files",
    "private_path",
    "rejects_path",
    "replacing",
    "scan_path",
    "unmatched_path",
    "write_private_json",
    "write_private_table",
]

_JOURNALS = ("-journal", "-wal", "-shm")  # what SQLite writes beside a database, with the database's own permissions


def private_path(manifest: Path) -> Path:
    """Where files and their hashes lie."""
    return manifest.with_name(f"{manifest.stem}.private.json")


def key_path(manifest: Path) -> Path:
    """The key of the pseudonyms."""
    return manifest.with_name(f"{manifest.stem}.key")


def scan_path(manifest: Path) -> Path:
    """What was found out about each file so far, so that indexing can go on and be repeated quickly."""
    return manifest.with_name(f"{manifest.stem}.scan.sqlite")


def rejects_path(manifest: Path) -> Path:
    """Every file that is in no volume, with the reason."""
    return manifest.with_name(f"{manifest.stem}.rejects.csv")


def unmatched_path(manifest: Path) -> Path:
    """Images and rows of tables that found no partner, and whatever else is worth a look."""
    return manifest.with_name(f"{manifest.stem}.unmatched.csv")


def own_files(manifest: Path) -> tuple[Path, ...]:
    """Everything that indexing writes, unfinished files and journals too; none of it is a file of the archive."""
    scan = scan_path(manifest)
    whole = (manifest, private_path(manifest), key_path(manifest), rejects_path(manifest), unmatched_path(manifest))
    journals = (scan.with_name(scan.name + suffix) for suffix in _JOURNALS)
    return (*whole, *map(_unfinished, whole), scan, *journals)


def create_private(path: Path) -> int:
    """A new empty file of mode 0600, whatever the umask; returns a descriptor. Raises FileExistsError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


@contextmanager
def replacing(path: Path, *, private: bool = True, **options: Any) -> Iterator[IO[str]]:
    """A text file that takes the place of ``path`` once it is complete, and not at all when writing fails."""
    unfinished = _unfinished(path)
    unfinished.unlink(missing_ok=True)
    handle = create_private(unfinished) if private else os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", **options) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_private_json(path: Path, body: Any) -> None:
    """In ASCII alone: what is not valid text in a file name (a lone surrogate) is escaped, and read back as it was."""
    with replacing(path) as stream:
        json.dump(body, stream, ensure_ascii=True)


def write_private_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """CSV; what is not valid text in a file name is shown escaped rather than stopping the list."""
    with replacing(path, newline="", errors="backslashreplace") as stream:
        # RFC 4180; with less at the end of lines, csv leaves a carriage return in a file name unquoted.
        table = csv.writer(stream, lineterminator="\r\n")
        table.writerow(columns)
        table.writerows(rows)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
