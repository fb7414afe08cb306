"""The accountants' child processes: started on demand, asked with a time-out, reaped at the session's end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpeq
from dpeq.errors import DpeqError

__all__ = ["AccountingError", "ask", "session"]

TIMEOUT_S = 60.0
"""Seconds one answer of one accountant may take before its process is killed (the first includes its imports)."""

_COMMAND: tuple[str, ...] = (sys.executable, "-m", "dpeq.privacy._prv_worker")


class AccountingError(DpeqError):
    """An accountant raised, timed out, or gave an answer that contradicts itself."""


class _Worker:
    """One child process and its line-by-line JSON channel."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._buffer = b""
        self._process = subprocess.Popen(
            [*_COMMAND, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=Path(dpeq.__file__).resolve().parent.parent,  # `-m` finds dpeq here, installed or not
            start_new_session=True,  # Ctrl-C belongs to the parent, which then closes its children itself
        )

    def ask(self, op: str, args: dict[str, Any], timeout: float) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        deadline = time.monotonic() + timeout
        try:
            stdin.write(json.dumps({"op": op, "args": args}).encode() + b"\n")
        except OSError as error:
            raise AccountingError(f"its process could not be reached ({error.strerror})") from error
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer within {timeout:g} seconds")
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                raise AccountingError("its process ended without an answer")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise AccountingError("its answer is not JSON") from error
        if "error" in reply:
            raise AccountingError(str(reply["error"]).rstrip("."))
        return reply["value"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class _Session:
    """The child processes of one span of work; a role that hung, or a question that failed, is not retried in it."""

    def __init__(self) -> None:
        self.depth = 0
        self.pid = os.getpid()
        self._workers: dict[str, _Worker] = {}
        self._refused: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    def start(self, role: str) -> _Worker:
        if role not in self._workers:
            self._workers[role] = _Worker(role)
        return self._workers[role]

    def ask(self, role: str, op: str, args: dict[str, Any]) -> Any:
        question = json.dumps([role, op, args])
        known = self._refused.get(role) or self._failed.get(question)
        if known is not None:
            raise AccountingError(known)
        try:
            return self.start(role).ask(op, args, TIMEOUT_S)
        except TimeoutError as error:
            self._refused[role] = str(error)
            raise AccountingError(str(error)) from error
        except AccountingError as error:
            self._failed[question] = str(error)
            raise
        finally:
            # After anything but a clean answer or a clean refusal the channel may hold a stale line: start afresh.
            worker = self._workers.get(role)
            if worker is not None and (role in self._refused or worker._process.poll() is not None):
                self._workers.pop(role).close()

    def close(self) -> None:
        while self._workers:
            self._workers.popitem()[1].close()


_lock = threading.RLock()
_current: list[_Session] = []


@contextlib.contextmanager
def session(*warm: str) -> Iterator[None]:
    """Keeps the accountants' processes alive for several questions; ``warm`` roles ("prv", "opacus", "pld") start now.

    Re-entrant. At the end of the outermost session every process is killed and reaped. One thread at a time.
    """
    with _lock:
        if not _current or _current[-1].pid != os.getpid():  # after a fork the parent's channels are not ours
            _current.append(_Session())
        active = _current[-1]
        active.depth += 1
        try:
            for role in warm:
                active.start(role)
            yield
        finally:
            active.depth -= 1
            if active.depth == 0:
                _current.remove(active)
                active.close()


def ask(role: str, op: str, **args: Any) -> Any:
    """The answer of ``role`` to ``op``; raises :class:`AccountingError` with the reason when there is none."""
    with session():
        return _current[-1].ask(role, op, args)
