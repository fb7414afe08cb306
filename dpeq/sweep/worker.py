"""A child process that runs one cell: it hears its task as one JSON line, and answers in JSON lines.

Started as ``python -m dpeq.sweep.worker``. The task is ``{"config", "out", "reports", "command"}``. Standard input
then stays open: its end says that the sweep is gone, however it went, and training stops, with a checkpoint.
Answers are ``{"stage"}``, ``{"step", "steps", "epsilon", "speed"}`` (epsilon null without privacy), and at last
``{"done": {"auc"}}``, ``{"stopped"}`` or ``{"error"}``, a sentence each. Whatever else is printed goes to the log.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpeq.allocation import keep_freed_blocks
from dpeq.errors import DpeqError

if TYPE_CHECKING:
    from dpeq.interruption import GracefulStop
    from dpeq.privacy.plan import PrivacyPlan
    from dpeq.training.loop import StepRecord

__all__ = ["main"]

_EVERY = 0.5  # seconds between two answers about steps
_STEPS_OF_SPEED = 10


class Teller:
    """An observer that answers in JSON lines; nothing private is in them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = -math.inf
        self._seconds: deque[float] = deque(maxlen=_STEPS_OF_SPEED)

    def tell(self, **answer: Any) -> None:
        try:
            os.write(self._descriptor, (json.dumps(answer, allow_nan=False) + "\n").encode())
        except BrokenPipeError:  # the sweep is gone; the end of standard input says so, too
            logging.getLogger(__name__).warning("Nobody listens any more.")

    def stage(self, text: str) -> None:
        self.tell(stage=text)

    def loading(self, done: int, total: int) -> None:
        """Not told: of many cells, each one's loading is a detail."""

    def planned(self, plan: PrivacyPlan) -> None:
        from dpeq.privacy.curve import EpsilonCurve

        EpsilonCurve(plan)  # asks the accountant now, not within the first step

    def stepped(self, record: StepRecord, plan: PrivacyPlan) -> None:
        self._seconds.append(record.seconds)
        now = time.monotonic()
        if now - self._last < _EVERY and record.step < plan.steps:
            return
        self._last = now
        from dpeq.privacy.curve import EpsilonCurve

        epsilon = EpsilonCurve(plan).after(record.step) if plan.private else None
        speed = plan.expected_batch_size * len(self._seconds) / max(sum(self._seconds), 1e-9)
        self.tell(step=record.step, steps=plan.steps, epsilon=epsilon, speed=float(f"{speed:.2g}"))


def main() -> int:
    """One cell; the exit code is what ``dpeq train`` would have had."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    keep_freed_blocks()
    task = json.loads(sys.stdin.readline())
    teller = Teller(answers)
    from dpeq.interruption import GracefulStop

    stop = GracefulStop()
    try:
        with stop:
            threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
            return _run(task, teller, stop)
    except KeyboardInterrupt:
        teller.tell(stopped="Stopped before its first step, or at once.")
        return stop.exit_code
    except DpeqError as error:
        teller.tell(error=str(error))
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code
    except Exception as error:  # the traceback is in the log
        what = str(error).strip().splitlines()
        teller.tell(error=f"{type(error).__name__}: {what[0]}" if what else type(error).__name__)
        logging.getLogger(__name__).exception("Not foreseen:")
        return 1


def _run(task: dict[str, Any], teller: Teller, stop: GracefulStop) -> int:
    from dpeq.config import RunConfig
    from dpeq.sweep.cell import run_cell
    from dpeq.training.run import Interrupted

    config = RunConfig.model_validate(task["config"])
    places = {"out": Path(task["out"]), "reports": Path(task["reports"])}
    try:
        outcome = run_cell(config, **places, command=task["command"], observer=teller, interruptible=stop)
    except Interrupted as stopped:
        teller.tell(stopped=str(stopped))
        return stop.exit_code
    teller.tell(done={"auc": None if outcome is None else outcome.report["utility"]["auc"]["value"]})
    return 0


def _stop_with_the_sweep() -> None:
    # Not by sys.stdin: a process that is forked meanwhile, to read images, closes that, and would wait for its lock.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    sys.exit(main())
