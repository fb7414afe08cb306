"""Child processes that run the cells of a sweep, some at a time; one that fails leaves the others alone."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dpeq
from dpeq.sweep.grid import Cell

__all__ = ["Audience", "Ended", "run_cells"]

_TICK = 0.25  # seconds between two looks at whether to stop
_PATIENCE = 20.0  # seconds that a child has to leave at once
_WORKER: tuple[str, ...] = (sys.executable, "-m", "dpeq.sweep.worker")


@dataclass(frozen=True)
class Ended:
    """How a cell ended: ``error`` is a sentence, or None; ``stopped`` says that it can go on."""

    cell: Cell
    seconds: float
    auc: float | None = None
    error: str | None = None
    stopped: bool = False


class Audience(Protocol):
    """Who watches a sweep."""

    def began(self, cell: Cell) -> None: ...
    def staged(self, cell: Cell, stage: str) -> None: ...
    def stepped(self, cell: Cell, step: int, steps: int, epsilon: float | None, speed: float) -> None: ...
    def ended(self, ended: Ended) -> None: ...


@dataclass
class _Child:
    cell: Cell
    log: Path
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    unread: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)


def run_cells(
    cells: Sequence[Cell],
    *,
    out: Path,
    reports: Path,
    logs: Path,
    commands: Callable[[Cell], str],
    workers: int,
    threads: int,
    audience: Audience,
    should_stop: Callable[[], bool],
) -> list[Ended]:
    """Runs ``cells`` in up to ``workers`` processes of ``threads`` threads each; returns how each ended, in that order.

    Once ``should_stop`` says yes, no cell begins any more and all children end their step and write a checkpoint;
    KeyboardInterrupt makes them leave at once. If this process dies, they stop by themselves.
    """
    waiting, running, ended = deque(cells), list[_Child](), list[Ended]()
    asked = False
    with selectors.DefaultSelector() as selector:
        try:
            while running or (waiting and not asked):
                while waiting and len(running) < workers and not asked:
                    child = _start(waiting.popleft(), out, reports, logs, commands, threads)
                    running.append(child)
                    assert child.process.stdout is not None
                    selector.register(child.process.stdout, selectors.EVENT_READ, child)
                    audience.began(child.cell)
                for key, _ in selector.select(_TICK):
                    if not _hear(key.data, audience):
                        selector.unregister(key.fileobj)
                        running.remove(key.data)
                        ended.append(_ending(key.data, asked))
                        audience.ended(ended[-1])
                if not asked and should_stop():
                    asked = True
                    _signal(running)
        except BaseException:
            _signal(running)  # to one that was asked before: to leave at once
            for child in running:
                _end(child)
            raise
    return ended


def _start(cell: Cell, out: Path, reports: Path, logs: Path, commands: Callable[[Cell], str], threads: int) -> _Child:
    log = logs / f"{cell.name}.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    root = str(Path(dpeq.__file__).resolve().parent.parent)  # `-m` finds dpeq here, installed or not
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    try:
        process = subprocess.Popen(
            _WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            env=environment,
            start_new_session=True,  # Ctrl-C belongs to the sweep, which then asks its children itself
        )
    finally:
        os.close(descriptor)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # one that dies at once is heard of by its end
        process.stdin.write(_task(cell, out, reports, commands(cell)))
        process.stdin.flush()
    return _Child(cell, log, process)


def _task(cell: Cell, out: Path, reports: Path, command: str) -> bytes:
    """The line that tells a child what to run."""
    config = cell.config.model_dump(mode="json")
    if math.isinf(cell.config.privacy.epsilon):
        config["privacy"]["epsilon"] = "inf"
    task = {"config": config, "out": str(out), "reports": str(reports), "command": command}
    return json.dumps(task, allow_nan=False).encode() + b"\n"


def _hear(child: _Child, audience: Audience) -> bool:
    """Passes on what a child said; False when it has ended."""
    assert child.process.stdout is not None
    data = os.read(child.process.stdout.fileno(), 65536)
    *lines, child.unread = (child.unread + data).split(b"\n")
    for line in lines:
        answer = json.loads(line)
        if "stage" in answer:
            audience.staged(child.cell, answer["stage"])
        elif "step" in answer:
            audience.stepped(child.cell, answer["step"], answer["steps"], answer["epsilon"], answer["speed"])
        else:
            child.last = answer
    return bool(data)


def _ending(child: _Child, asked: bool) -> Ended:
    code = _end(child)
    seconds = time.monotonic() - child.began
    last = child.last
    if code == 0 and "done" in last:
        return Ended(child.cell, seconds, auc=last["done"]["auc"])
    if "stopped" in last or (asked and code == -signal.SIGTERM):  # the latter before it had anything to end
        return Ended(child.cell, seconds, stopped=True)
    sentence = last.get("error")
    if sentence is None:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        sentence = f"Its process ended {how} without a word."
    return Ended(child.cell, seconds, error=f"{sentence} (log: {child.log})")


def _end(child: _Child) -> int:
    """Waits for a child that is ending, not for ever, and closes its pipes."""
    process = child.process
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    return code


def _signal(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
