"""What the person at the machine sees of a sweep: one bar for all of it, one line for each cell that runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column

from dpeq.console import duration
from dpeq.reporting.numbers import round_up
from dpeq.sweep.grid import Cell
from dpeq.sweep.pool import Ended

__all__ = ["SweepDisplay"]


class SweepDisplay:
    """An audience on a terminal; where there is none, a line when a cell begins or ends.

    Args:
        work: expected seconds of training of every cell that is to run, by name; they weigh the overall bar.
        summarise: called after every finished cell; returns sentences about what went wrong with that.
    """

    def __init__(self, console: Console, work: Mapping[str, float], summarise: Callable[[], list[str]]) -> None:
        self._console = console
        self._summarise = summarise
        self._work = dict(work)
        self._share = dict.fromkeys(work, 0.0)  # of each cell's work, in this process
        self._resumed: dict[str, float] = {}
        self._counts = {"done": 0, "failed": 0, "stopped": 0}
        self._began = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._overall = self._progress.add_task("all cells", total=sum(self._work.values()) or 1.0, facts="")

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def began(self, cell: Cell) -> None:
        self._tasks[cell.name] = self._progress.add_task(cell.name, total=None, facts="starting")
        self._line(f"began   {cell.name}")

    def staged(self, cell: Cell, stage: str) -> None:
        self._progress.update(self._tasks[cell.name], facts=stage)

    def stepped(self, cell: Cell, step: int, steps: int, epsilon: float | None, speed: float) -> None:
        first = self._resumed.setdefault(cell.name, (step - 1) / steps)
        self._share[cell.name] = max(0.0, step / steps - first) / max(1.0 - first, 1e-9)
        spent = "NON-PRIVATE" if epsilon is None else f"epsilon {round_up(epsilon)} of {cell.epsilon:g}"
        left = self._left(cell.name)
        told = [f"{step} of {steps}", spent, f"{speed:g} units/s", *([f"{duration(left)} left"] if left else [])]
        self._progress.update(self._tasks[cell.name], completed=step, total=steps, facts=", ".join(told))
        self._show_overall()

    def ended(self, ended: Ended) -> None:
        name = ended.cell.name
        self._progress.remove_task(self._tasks.pop(name))
        if ended.stopped:
            self._counts["stopped"] += 1
            self._say(f"stopped {name}; it can go on", "yellow")
            return
        self._share[name] = 1.0
        if ended.error is not None:
            self._counts["failed"] += 1
            self._say(f"FAILED  {name}: {ended.error}", "red")
        else:
            self._counts["done"] += 1
            auc = "" if ended.auc is None else f", test AUC {ended.auc:.3f}"
            self._say(f"done    {name}: {duration(ended.seconds)}{auc}")
            for sentence in self._summarise():
                self._say(f"No summary yet: {sentence}", "yellow")
        self._show_overall()
        self._line(f"        {self._facts()}")

    def _left(self, name: str) -> float | None:
        """Seconds left of one cell, from the pace of all."""
        pace = self._pace()
        return None if pace is None else (1.0 - self._share[name]) * self._work[name] * pace

    def _pace(self) -> float | None:
        """Seconds that a second of expected work of one cell really takes."""
        spent = [(self._share[name] * work) for name, work in self._work.items()]
        running = max(len(self._tasks), 1)
        return running * (time.monotonic() - self._began) / sum(spent) if sum(spent) > 0 else None

    def _facts(self) -> str:
        told = [f"{self._counts['done']} of {len(self._work)} cells done"]
        if self._counts["failed"]:
            told.append(f"{self._counts['failed']} failed")
        whole, behind = sum(self._work.values()), sum(self._share[n] * w for n, w in self._work.items())
        if 0 < behind < whole:
            told.append(f"{duration((whole - behind) * (time.monotonic() - self._began) / behind)} left")
        return ", ".join(told)

    def _show_overall(self) -> None:
        behind = sum(self._share[name] * work for name, work in self._work.items())
        self._progress.update(self._overall, completed=behind, facts=self._facts())

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True)

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._say(text)
