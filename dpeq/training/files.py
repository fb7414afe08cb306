"""The folder of a run: made once, written so that a crash leaves every file either old or new, never half."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DpeqError

__all__ = [
    "RunWriteError",
    "as_json",
    "fingerprint_key",
    "make_folder",
    "new_folder",
    "remove_leftovers",
    "sync",
    "write_durably",
    "write_json",
    "write_run_file",
]

_KEY = ".fingerprint.key"


class RunWriteError(DpeqError):
    """A file of a run could not be written; what was there before is whole, and the run can be resumed."""


def make_folder(path: Path, *, owner_alone: bool = False) -> None:
    """Makes a folder for output, or says in one sentence why it cannot be; called before anything long begins."""
    try:
        path.mkdir(mode=0o700 if owner_alone else 0o777, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"Nothing can be written to {path} ({error.strerror}); choose another folder.") from error


def new_folder(out: Path, name: str, *, exact: bool = False) -> Path:
    """A folder of its own for every run: ledgers are never overwritten.

    When the name is taken it gets a number, or with ``exact`` :class:`ConfigError` says so.
    """
    make_folder(out)
    number = 1
    while True:
        folder = out / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(mode=0o700)
            return folder
        except FileExistsError:
            if exact:
                raise ConfigError(
                    f"There is something at {folder} already; take it away, or choose another name."
                ) from None
            number += 1


def write_durably(path: Path, data: bytes) -> None:
    """Writes beside ``path``, readable by the owner alone, and renames once all is on the disk.

    Raises:
        OSError: the file that was there before is as it was, and nothing is left beside it.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_run_file(run: Path, name: str, data: bytes) -> None:
    """:func:`write_durably` in a run that has begun; :class:`RunWriteError` says how to go on."""
    try:
        (run / name).parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(run / name, data)
    except OSError as error:
        raise RunWriteError(
            f"{run / name} could not be written ({error.strerror}); make room, then go on with "
            f"'dpeq train --resume {run}'."
        ) from error


def write_json(run: Path, name: str, body: dict[str, Any]) -> None:
    """``body`` as JSON, by :func:`write_run_file`."""
    write_run_file(run, name, as_json(body))


def as_json(body: dict[str, Any]) -> bytes:
    """As the files of a run have it."""
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()


def sync(path: Path) -> None:
    """Waits until the disk holds a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(run: Path) -> None:
    """Removes what a crash left half-written; only for whoever holds the lock of the run's ledger."""
    for path in _leftovers(run):
        path.unlink(missing_ok=True)


def _leftovers(run: Path) -> Iterator[Path]:
    yield from run.glob(".*.part")
    yield from run.glob(".ledger-*")
    yield from (run / "checkpoints").glob(".*.part")


def fingerprint_key(out: Path, *, make: bool) -> bytes:
    """The key of the data fingerprints of all runs in ``out``, readable by its owner alone; made on first use.

    A plain hash would tell anybody who can guess the data whether the guess is right; a keyed one can be compared by
    whoever holds the key, to make sure that two runs saw the same data.

    Raises:
        ConfigError: when there is no usable key and none may be made.
    """
    path = out / _KEY
    if make and not path.exists():
        beside = out / f"{_KEY}.{secrets.token_hex(8)}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(32).encode())
            os.fsync(descriptor)
            os.link(beside, path)  # whole or not at all, and never over the key that another run has just made
        except FileExistsError:
            pass
        finally:
            os.close(descriptor)
            beside.unlink()
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"There is no usable key {path} to recognise the data by; bring it back to where the run began."
        ) from error
    return key
