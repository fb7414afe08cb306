"""What is known of each file, in an SQLite file beside the manifest: indexing can be stopped, gone on with, repeated.

A file of the same size, times of change (``st_mtime_ns``, and ``st_ctime_ns``, which no program can set) and inode is
not read again, unless the code that read it has changed. The store holds paths and ids, so it is readable by its owner
alone from the moment it exists; SQLite gives its journal the same permissions. Nothing is spilled elsewhere: what it
would put into temporary files stays in memory, and is small.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from dpeq.data.index.spelling import with_composed_ids
from dpeq.data.index.store import explained, open_store
from dpeq.data.index.version import reader_version
from dpeq.data.index.walk import Entry
from dpeq.data.readers.source import Header, Refused
from dpeq.errors import DataError

__all__ = ["Scan"]

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE folders (number INTEGER PRIMARY KEY, path BLOB, device INTEGER, inode INTEGER, UNIQUE (device, inode));
CREATE TABLE files (
  number INTEGER PRIMARY KEY, path BLOB UNIQUE,
  stamp TEXT,   -- size, mtime, ctime, inode: as text, because times and inodes can be larger than SQLite's integers
  run INTEGER,  -- the last one that saw it
  state INTEGER -- 0: to be examined, 1: known, 2: known for this run only
);
CREATE INDEX files_by_state ON files (state, number);
CREATE TABLE known (
  number INTEGER PRIMARY KEY, format TEXT,
  series TEXT, owner TEXT, -- of DICOM alone, the owner is patient and study
  header TEXT, identifying INTEGER,
  reason TEXT, detail TEXT
);
CREATE INDEX known_by_series ON known (series, owner) WHERE series NOT NULL;
CREATE TABLE identifying (number INTEGER PRIMARY KEY, names TEXT UNIQUE);
CREATE TABLE checks (key BLOB PRIMARY KEY, run INTEGER, result TEXT);
CREATE TABLE fates (
  path BLOB PRIMARY KEY,
  reason TEXT, -- none: in an accepted volume
  detail TEXT
);
"""
_TODO, _KNOWN, _PASSING = range(3)
_PAGE = 1024
_COMMIT_SECONDS = 1.0
_MAY_PASS = frozenset(
    {
        "cannot be opened",
        "cannot be read",
        "changed while it was read",
        "its decoder crashed",
        "its decoder did not end in time",
        "too large for the memory",
    }
)
"""What a second look may find otherwise although the file is the same: it is not remembered."""


class Scan:
    """The store of one manifest, for one folder; a context manager, and a queue of folders for a walk.

    Raises:
        DataError: when the store is damaged, cannot be written, or is in use; on leaving it, too, for whatever SQLite
            raised meanwhile.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        about = {"root": os.fsencode(root.resolve()).hex(), "reader": reader_version()}
        try:
            self._base = open_store(path)
        except sqlite3.Error as error:
            raise explained(error, path) from error
        self._at = 0
        try:
            self._begin()
            if self._about() != about:
                self._make_anew(about)
            self._run = 1 + max(self._number("SELECT max(run) FROM files"), self._number("SELECT max(run) FROM checks"))
            for table in ("fates", "folders"):
                self._base.execute(f"DELETE FROM {table}")
        except sqlite3.Error as error:
            self._base.close()
            raise explained(error, path) from error

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Keeps what was found out so far, however it ends; an error of SQLite's may cost the last second."""
        try:
            if not isinstance(error, sqlite3.Error):
                self._base.execute("COMMIT")
        except sqlite3.Error as failed:
            if error is None:  # else that one is told
                error = failed
        finally:
            self._base.close()
        if isinstance(error, sqlite3.Error):
            raise explained(error, self._path) from error

    # ------------------------------------------------------------------------------------------------ the walk

    def push(self, path: str, device: int, inode: int) -> bool:
        # As text: both numbers can be larger than SQLite's.
        row = (os.fsencode(path), str(device), str(inode))
        done = self._base.execute("INSERT OR IGNORE INTO folders (path, device, inode) VALUES (?, ?, ?)", row)
        return done.rowcount == 1

    def pop(self) -> str | None:
        for number, path in self._base.execute(
            "SELECT number, path FROM folders WHERE number > ? LIMIT 1", (self._at,)
        ):
            self._at = number
            return os.fsdecode(path)
        return None

    def note(self, entries: Iterable[Entry]) -> None:
        """Takes in what a walk found, and forgets files that are there no more."""
        self._at = 0
        stream = iter(entries)
        while page := list(islice(stream, _PAGE)):
            rows = [(os.fsencode(e.path), _stamp(e), self._run, _PASSING if e.reason else _TODO) for e in page]
            self._base.executemany(
                f"""
                INSERT INTO files (path, stamp, run, state) VALUES (?, ?, ?, ?)
                ON CONFLICT (path) DO UPDATE SET
                  run = excluded.run, stamp = excluded.stamp,
                  state = CASE
                    WHEN state = {_KNOWN} AND excluded.state = {_TODO} AND stamp = excluded.stamp THEN {_KNOWN}
                    ELSE excluded.state
                  END
                """,
                rows,
            )
            for entry in page:
                if entry.reason:
                    self._keep(entry.path, _PASSING, reason=entry.reason, detail=entry.detail)
            self._tick()
        self._base.execute("DELETE FROM known WHERE number IN (SELECT number FROM files WHERE run != ?)", (self._run,))
        self._base.execute("DELETE FROM files WHERE run != ?", (self._run,))
        self._commit()

    # ------------------------------------------------------------------------------------------------ headers

    def count_todo(self) -> int:
        return self._number(f"SELECT count(*) FROM files WHERE state = {_TODO}")

    def todo(self) -> Iterator[str]:
        """Paths that have to be examined; answers may be kept while this goes on."""
        at = 0
        query = f"SELECT number, path FROM files WHERE state = {_TODO} AND number > ? ORDER BY number LIMIT {_PAGE}"
        while page := self._base.execute(query, (at,)).fetchall():
            at = page[-1][0]
            yield from (os.fsdecode(path) for _, path in page)

    def keep(self, path: str, found: Header | Refused) -> None:
        """What examining a file came to."""
        if isinstance(found, Refused):
            state = _PASSING if found.reason in _MAY_PASS else _KNOWN
            self._keep(path, state, reason=found.reason, detail=found.detail)
        else:
            names = json.dumps(found.identifying)
            self._base.execute("INSERT OR IGNORE INTO identifying (names) VALUES (?)", (names,))
            number = self._number("SELECT number FROM identifying WHERE names = ?", names)
            found = with_composed_ids(found)
            text = replace(found, identifying=()).to_json()
            series = owner = None
            if found.format in ("dicom", "enhanced"):  # as JSON, because an id need not be valid text
                series, owner = json.dumps(found.series), json.dumps([found.patient, found.study])
            self._keep(path, _KNOWN, found.format, series, owner, text, number)
        self._tick()

    def _keep(
        self,
        path: str,
        state: int,
        kind: str | None = None,
        series: str | None = None,
        owner: str | None = None,
        header: str | None = None,
        identifying: int | None = None,
        reason: str | None = None,
        detail: str = "",
    ) -> None:
        number = self._number("SELECT number FROM files WHERE path = ?", os.fsencode(path))
        row = (number, kind, series, owner, header, identifying, reason, _plain(detail))
        self._base.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._base.execute("UPDATE files SET state = ? WHERE number = ?", (state, number))

    def slices(self) -> Iterator[list[tuple[str, Header]]]:
        """Files of format "dicom", one list for each series of a patient and study, in the order of their paths."""
        query = """
            SELECT series, owner, path, header FROM known CROSS JOIN files USING (number)
            WHERE series NOT NULL AND format = 'dicom' ORDER BY series, owner
        """
        for _, rows in groupby(self._base.execute(query), key=lambda row: row[:2]):
            yield sorted((os.fsdecode(path), Header.from_json(text)) for _, _, path, text in rows)

    def whole(self) -> Iterator[tuple[str, Header]]:
        """Files that hold whole images, in the order of their paths."""
        query = """
            SELECT path, header FROM files CROSS JOIN known USING (number)
            WHERE format NOT NULL AND format != 'dicom' ORDER BY path
        """
        for path, text in self._base.execute(query):
            yield os.fsdecode(path), Header.from_json(text)

    def claimed_twice(self) -> frozenset[str]:
        """Series that headers give to more than one patient."""
        query = "SELECT DISTINCT series, owner FROM known WHERE series NOT NULL ORDER BY series, owner"
        twice = set()
        for series, rows in groupby(self._base.execute(query), key=lambda row: row[0]):
            if len({json.loads(owner)[0] for _, owner in rows}) > 1:
                twice.add(json.loads(series))
        return frozenset(twice - {""})

    def policy(self) -> tuple[Counter[str], int]:
        """In how many files each identifying attribute was met, and how many files have a DICOM header."""
        # Counted here: SQLite would sort all files by what is counted, in memory.
        query = "SELECT identifying FROM known WHERE format IN ('dicom', 'enhanced') AND identifying NOT NULL"
        files = Counter(number for (number,) in self._base.execute(query))
        counts: Counter[str] = Counter()
        for number, names in self._base.execute("SELECT number, names FROM identifying"):
            if number in files:
                counts.update(dict.fromkeys(json.loads(names), files[number]))
        return counts, files.total()

    # ------------------------------------------------------------------------------------------------ voxels

    def stamp(self, path: str) -> tuple[int, int, int, int]:
        """Size, ``mtime_ns``, ``ctime_ns`` and inode of a file as the walk found them."""
        row = self._base.execute("SELECT stamp FROM files WHERE path = ?", (os.fsencode(path),)).fetchone()
        size, mtime, ctime, inode = map(int, row[0].split())
        return size, mtime, ctime, inode

    def checked(self, key: bytes) -> Any:
        """What :meth:`keep_check` was given under this key, or None."""
        row = self._base.execute("SELECT result FROM checks WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        self._base.execute("UPDATE checks SET run = ? WHERE key = ?", (self._run, key))
        return json.loads(row[0])

    def keep_check(self, key: bytes, result: Any) -> None:
        if not isinstance(result, dict) or result.get("reason") not in _MAY_PASS:
            row = (key, self._run, json.dumps(result))
            self._base.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", row)
        self._tick()

    # ------------------------------------------------------------------------------------------------ accounting

    def accept(self, paths: Iterable[str]) -> None:
        self._decide((os.fsencode(path), None, "") for path in paths)

    def reject(self, paths: Iterable[str], why: Refused) -> None:
        self._decide((os.fsencode(path), why.reason, _plain(why.detail)) for path in paths)

    def _decide(self, rows: Iterable[tuple[bytes, str | None, str]]) -> None:
        try:
            self._base.executemany("INSERT INTO fates VALUES (?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise DataError("A file was accounted for twice, which is an error in dpeq; please report it.") from error

    def close_accounts(self) -> tuple[int, int, Counter[str]]:
        """Files seen, files accepted, and rejects by reason; files that no header was found in are rejected here.

        Raises:
            DataError: unless every file was either accepted or rejected, and none that is not there.
        """
        self._base.execute(
            "INSERT INTO fates SELECT path, reason, detail FROM files JOIN known USING (number) WHERE format IS NULL"
        )
        seen = self._number("SELECT count(*) FROM files")
        accepted = self._number("SELECT count(*) FROM fates WHERE reason IS NULL")
        query = "SELECT reason FROM fates WHERE reason NOT NULL"
        reasons = Counter(reason for (reason,) in self._base.execute(query))
        lost = self._number("SELECT count(*) FROM files WHERE path NOT IN (SELECT path FROM fates)")
        if lost or accepted + sum(reasons.values()) != seen:
            raise DataError(
                f"{lost} of {seen} files are not accounted for, which is an error in dpeq; please report it."
            )
        self._base.execute("DELETE FROM checks WHERE run != ?", (self._run,))
        self._commit()
        return seen, accepted, reasons

    def accepted(self) -> Iterator[str]:
        query = "SELECT path FROM fates WHERE reason IS NULL ORDER BY path"
        return (os.fsdecode(path) for (path,) in self._base.execute(query))

    def rejects(self) -> Iterator[tuple[str, str, str]]:
        """Path, reason and detail, in the order of paths."""
        query = "SELECT path, reason, detail FROM fates WHERE reason NOT NULL ORDER BY path"
        return ((os.fsdecode(path), reason, detail) for path, reason, detail in self._base.execute(query))

    # ------------------------------------------------------------------------------------------------ below

    def _number(self, query: str, *values: object) -> int:
        return int(self._base.execute(query, values).fetchone()[0] or 0)

    def _about(self) -> dict[str, str] | None:
        known = self._base.execute("SELECT count(*) FROM sqlite_master WHERE name = 'about'").fetchone()[0]
        return dict(self._base.execute("SELECT name, value FROM about")) if known else None

    def _make_anew(self, about: dict[str, str]) -> None:
        tables = self._base.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            self._base.execute(f'DROP TABLE "{name}"')
        for statement in filter(str.strip, _TABLES.split(";")):
            self._base.execute(statement)
        self._base.executemany("INSERT INTO about VALUES (?, ?)", about.items())

    def _begin(self) -> None:
        self._base.execute("BEGIN IMMEDIATE")
        self._committed = time.monotonic()

    def _commit(self) -> None:
        self._base.execute("COMMIT")
        self._begin()

    def _tick(self) -> None:
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit()


def _stamp(entry: Entry) -> str:
    return f"{entry.size} {entry.mtime_ns} {entry.ctime_ns} {entry.inode}"


def _plain(text: str) -> str:
    """Without what is not valid text, which SQLite does not take."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
