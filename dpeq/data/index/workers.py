"""Examining and checking files in processes beside this one, which survive any file.

The processes are plain children that run :mod:`dpeq.data.index.worker` and hear and tell by pipes: unlike those of
:mod:`multiprocessing` they do not import the caller's main module. An item that ends its process is given to a fresh
one, alone; when that ends too, the item is refused. Half of the machine's memory is shared out among the processes, the
other half is for one more that reads, one at a time, what was too large for a share.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from dpeq.data.index.check import Check
from dpeq.data.readers.source import Header, Refused, Source
from dpeq.errors import DataError

__all__ = ["READER", "Workers", "available"]

READER = "dpeq.data.readers.read"
"""The module that worker processes read files with."""

SECONDS = 120
"""What one file may take."""

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dpeq.data.index import worker; worker.main"
_LEAST_MEMORY = 4 << 30
_LEAST_SHARE = 2 << 30  # of address space, of which code alone takes several hundred MiB
_TOO_LARGE = "too large for the memory"
K = TypeVar("K")


class Workers:
    """``count`` processes at most, started when there is something for them to do; a context manager."""

    def __init__(self, root: Path, count: int) -> None:
        self._root, self.count = root, count
        self._threads = ThreadPoolExecutor(count, "reader")
        self._own = threading.local()
        self._large: _Child | None = None  # with the memory of all the others together
        self._large_lock = threading.Lock()
        self._children: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for child in self._children:
                child.end()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.wait()

    def examine(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[str, Header | Refused]]:
        """Each path, relative to the root, with its header or why it has none; in no particular order."""
        for path, answer in self._map("examine", ([(path, path) for path in batch] for batch in batches)):
            yield path, _refusal(answer) or Header.from_json(answer["header"])

    def check(self, batches: Iterable[Sequence[tuple[K, Sequence[Source]]]]) -> Iterator[tuple[K, Check | Refused]]:
        """Each key with what its images, which are read together, were found to be; in no particular order."""
        asked = ([(key, [s.to_dict() for s in sources]) for key, sources in batch] for batch in batches)
        for key, answer in self._map("check", asked):
            yield key, _refusal(answer) or Check.from_json(answer)

    def _map(self, verb: str, batches: Iterable[list[tuple[K, Any]]]) -> Iterator[tuple[K, dict[str, Any]]]:
        """A few batches more than there are processes are taken at a time, so that their number may be unbounded."""
        told: queue.SimpleQueue[tuple[K, dict[str, Any]] | BaseException | None] = queue.SimpleQueue()
        batches = iter(batches)
        running, more = 0, True
        while more or running:
            while more and running < 2 * self.count:
                batch = next(batches, None)
                more = batch is not None
                if batch is not None:
                    self._threads.submit(self._answer, verb, batch, told.put)
                    running += 1
            if not running:
                return
            one = told.get()
            if one is None:
                running -= 1
            elif isinstance(one, BaseException):
                raise one
            else:
                yield one

    def _answer(self, verb: str, batch: list[tuple[K, Any]], tell: Callable[[Any], None]) -> None:
        """In a thread of the pool, which has a child of its own: tells every answer as it comes, and then None."""
        try:
            done = 0
            while done < len(batch):
                child = self._child()
                for answer in child.ask(verb, [item for _, item in batch[done:]]):
                    if answer.get("reason") == _TOO_LARGE:
                        answer = self._ask_large(verb, batch[done][1])
                    tell((batch[done][0], answer))
                    done += 1
                if done < len(batch):
                    # What hung is asked beside others, for it takes long; what crashed may have lacked memory.
                    again = self._ask_alone if child.wait() == -signal.SIGALRM else self._ask_large
                    tell((batch[done][0], again(verb, batch[done][1])))
                    done += 1
            tell(None)
        except BaseException as error:
            tell(error)

    def _ask_alone(self, verb: str, item: Any) -> dict[str, Any]:
        """An item that ended a process, which had perhaps read others before: was it the item's doing?"""
        return _last_answer(self._child(), verb, item)

    def _ask_large(self, verb: str, item: Any) -> dict[str, Any]:
        with self._large_lock:
            self._large = self._living(self._large, _memory())
            return _last_answer(self._large, verb, item)

    def _child(self) -> _Child:
        share = min(_memory(), max(_memory() // self.count, _LEAST_SHARE))
        child = self._own.child = self._living(getattr(self._own, "child", None), share)
        return child

    def _living(self, child: _Child | None, memory: int) -> _Child:
        """The child, or another one where it is dead."""
        if child is None or not child.alive:
            with self._lock:
                if self._closed:
                    raise DataError("Indexing was stopped.")
                if child is not None:
                    child.wait()
                    self._children.discard(child)
                child = _Child(self._root, memory)
                self._children.add(child)
            child.start()
        return child


class _Child:
    def __init__(self, root: Path, memory: int) -> None:
        self._root, self.alive = str(root), True
        places = [place or str(Path.cwd()) for place in sys.path]
        call = f"{_BOOT}({READER!r}, {memory}, {SECONDS})"
        # One thread each: there are as many processes as processors.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            # Isolated: a folder of images must not be where modules are looked for.
            [sys.executable, "-I", "-c", call, json.dumps(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children when it is ready
            text=True,
            encoding="ascii",
            env={**os.environ, **threads},
        )

    def start(self) -> None:
        """Waits until it listens; raises :class:`DataError` when it never does."""
        line = self._hear()
        if line is None or "ready" not in line:
            why = "they end at once" if line is None else line["failed"]
            raise DataError(f"The processes that read files do not start ({why}); run 'dpeq doctor'.")

    def ask(self, verb: str, items: list[Any]) -> Iterator[dict[str, Any]]:
        """Answers in the order of the items; fewer than there are items when the process ends on the way."""
        question = json.dumps({"verb": verb, "root": self._root, "items": items})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.alive = False
            return
        for _ in items:
            answer = self._hear()
            if answer is None:
                return
            yield answer

    def _hear(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):  # the end, or a line that was cut by it
            self.alive = False
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return code


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Half of the machine's memory: an allocation beyond it fails, and the file is refused."""
    return max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2, _LEAST_MEMORY)


def _last_answer(child: _Child, verb: str, item: Any) -> dict[str, Any]:
    """To an item that ended another process, or found it too small; what ends this one too is refused."""
    for answer in child.ask(verb, [item]):
        return answer
    late = child.wait() == -signal.SIGALRM
    reason = "its decoder did not end in time" if late else "its decoder crashed"
    return {"reason": reason, "detail": f"the process ended with {child.wait()}"}


def _refusal(answer: dict[str, Any]) -> Refused | None:
    return Refused(answer["reason"], answer["detail"]) if "reason" in answer else None
