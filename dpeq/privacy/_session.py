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
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dpeq
from dpeq.errors import DpeqError

__all__ = ["AccountingError", "ask", "asked", "session"]

TIMEOUT_S = 60.0
"""Seconds one answer of one accountant may take before its process is killed (the first includes its imports)."""

_COMMAND: tuple[str, ...] = (sys.executable, "-m", "dpeq.privacy._prv_worker")


class AccountingError(DpeqError):
    """An accountant raised, timed out, or gave an answer that contradicts itself."""


class _BrokenChannel(AccountingError):
    """What came is no reply to what was asked: nothing more from that process can be trusted."""


class _Question:
    """One question that was sent, and its reply once it was read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reply: dict[str, Any] | None = None


class _Worker:
    """One child process and its line-by-line JSON channel; replies come in the order of the questions."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._buffer = b""
        self._waiting: deque[_Question] = deque()
        self._asked = 0
        self._process = subprocess.Popen(
            [*_COMMAND, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=Path(dpeq.__file__).resolve().parent.parent,  # `-m` finds dpeq here, installed or not
            start_new_session=True,  # Ctrl-C belongs to the parent, which then closes its children itself
        )

    def send(self, op: str, args: dict[str, Any]) -> _Question:
        assert self._process.stdin is not None
        self._asked += 1
        question = _Question(self._asked)
        request = json.dumps({"id": question.number, "op": op, "args": args})
        try:
            self._process.stdin.write(request.encode() + b"\n")
        except (OSError, ValueError) as error:
            raise _BrokenChannel("its process could not be reached") from error
        self._waiting.append(question)
        return question

    def receive(self, question: _Question, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        while question.reply is None:
            self._read_reply(deadline, timeout)
        if "error" in question.reply:
            raise AccountingError(str(question.reply["error"]).rstrip("."))
        return question.reply["value"]

    def _read_reply(self, deadline: float, timeout: float) -> None:
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            raise _BrokenChannel("its process ended without an answer")
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer within {timeout:g} seconds")
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                raise _BrokenChannel("its process ended without an answer")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        question = self._waiting.popleft()
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise _BrokenChannel("its answer is not JSON") from error
        # A stray line must not push every later answer one question further.
        if not isinstance(reply, dict) or reply.get("id") != question.number or not {"value", "error"} & reply.keys():
            raise _BrokenChannel("its answer belongs to another question")
        question.reply = reply

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

    def asked(self, role: str, op: str, args: dict[str, Any]) -> Callable[[], Any]:
        """Sends a question and gives a function that waits for the answer: several accountants work at a time."""
        key = json.dumps([role, op, args])
        known = self._refused.get(role) or self._failed.get(key)
        if known is not None:
            raise AccountingError(known)
        worker = self.start(role)
        with self._noted(worker, key):
            question = worker.send(op, args)

        def answer() -> Any:
            with self._noted(worker, key):
                return worker.receive(question, TIMEOUT_S)

        return answer

    @contextlib.contextmanager
    def _noted(self, worker: _Worker, key: str) -> Iterator[None]:
        """Remembers why there is no answer; a process that hung or whose channel is unsound is ended."""
        try:
            yield
        except TimeoutError as error:
            self._refused[worker.role] = str(error)
            self._end(worker)
            raise AccountingError(str(error)) from error
        except AccountingError as error:
            self._failed[key] = str(error)
            if isinstance(error, _BrokenChannel):
                self._end(worker)
            raise

    def _end(self, worker: _Worker) -> None:
        if self._workers.get(worker.role) is worker:
            del self._workers[worker.role]
        worker.close()

    def close(self) -> None:
        while self._workers:
            self._workers.popitem()[1].close()


_lock = threading.RLock()
_current: list[_Session] = []


@contextlib.contextmanager
def session(*warm: str) -> Iterator[None]:
    """Keeps the accountants' processes alive for several questions; ``warm`` roles ("pld", "prv", "rdp") start now.

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


def asked(role: str, op: str, **args: Any) -> Callable[[], Any]:
    """Asks ``role`` and gives a function that waits for its answer; only within a :func:`session`.

    Both raise :class:`AccountingError` with the reason when there is no answer.
    """
    if not _current or _current[-1].pid != os.getpid():
        raise RuntimeError("an accountant is asked ahead within a session only")
    return _current[-1].asked(role, op, args)


def ask(role: str, op: str, **args: Any) -> Any:
    """The answer of ``role`` to ``op``; raises :class:`AccountingError` with the reason when there is none."""
    with session():
        return asked(role, op, **args)()
