"""The curves of a run while it goes on: TensorBoard files in the run directory, and an MLflow store if one is wished.

What a curve shows is public (epsilon, learning rate, speed) unless private metrics were asked for; those have tags
under ``private/`` and no noise covers them. How long a single step takes tells how many units were in it, so steps are
written ten at a time, under one time of day in whole minutes and with their mean speed; fewer than ten, as a run that
is stopped may leave, have no speed.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dpeq.config import RunConfig
from dpeq.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from dpeq.training.loop import StepRecord

__all__ = ["BLOCK", "Point", "Tracker", "check_tracking", "open_trackers", "public_settings", "send_report"]

BLOCK = 10
"""Steps that are written together."""


class Point(NamedTuple):
    """One value of one curve."""

    tag: str
    value: float
    step: int


class Sink(Protocol):
    """A place where curves go."""

    @property
    def warnings(self) -> list[str]:
        """What failed, one sentence each, for the report."""

    def write(self, points: Sequence[Point], at: float) -> None:
        """Takes points; ``at`` is their time, in seconds since 1970."""

    def close(self, status: str) -> None:
        """No points follow. ``status`` is FINISHED, FAILED or KILLED (stopped before the end)."""


class Tracker:
    """Takes the steps of one run and passes them to every sink; a context manager, so that nothing is left unwritten.

    Attributes:
        places: where curves of this run lie, in words for the report; those from before a resume count too.
    """

    def __init__(
        self, sinks: Sequence[Sink], plan: PrivacyPlan, places: Sequence[str], *, private: bool, start: int
    ) -> None:
        self._sinks, self._plan, self._private = tuple(sinks), plan, private
        self._block: list[tuple[StepRecord, float]] = []
        self._last = start
        self._closed = False
        self.places = tuple(places)

    @property
    def warnings(self) -> list[str]:
        """One sentence for every sink that failed so far; complete once :meth:`finish` has returned."""
        return [warning for sink in self._sinks for warning in sink.warnings]

    def step(self, record: StepRecord, epsilon: float) -> None:
        """After a step; ``epsilon`` is what all steps so far spent, and not shown where it is infinite."""
        self._last = record.step
        self._block.append((record, epsilon))
        if len(self._block) == BLOCK:
            self._write_block()

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """After evaluation: the scores of ``metrics.json``, as points at the last step. The run counts as complete."""
        self._write_block()
        points = [Point(tag, value, self._last) for tag, value in _scores(metrics)]
        for sink in self._sinks:
            sink.write(points, _minute())
        self._close("FINISHED")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._write_block()
        finally:
            self._close("FAILED" if isinstance(error, Exception) else "KILLED")

    def _close(self, status: str) -> None:
        if not self._closed:
            self._closed = True
            for sink in self._sinks:
                sink.close(status)

    def _write_block(self) -> None:
        if not self._block:
            return
        points = [point for record, epsilon in self._block for point in self._of_step(record, epsilon)]
        if len(self._block) == BLOCK:
            seconds = sum(record.seconds for record, _ in self._block) / BLOCK
            for tag, value in (
                ("speed/seconds_per_step", seconds),
                ("speed/units_per_second", self._plan.expected_batch_size / max(seconds, 1e-9)),
            ):
                points.append(Point(tag, float(f"{value:.2g}"), self._last))
        self._block = []
        for sink in self._sinks:
            sink.write(points, _minute())

    def _of_step(self, record: StepRecord, epsilon: float) -> Iterator[Point]:
        if math.isfinite(epsilon):
            yield Point("epsilon", epsilon, record.step)
        yield Point("lr", record.lr, record.step)
        # Asked for in this run's configuration, or not shown: what a record happens to carry is not enough.
        if self._private and record.private is not None:
            for name, value in asdict(record.private).items():
                yield Point(f"private/{name}", float(value), record.step)


def _minute() -> float:
    """The time of day to the minute before: to the millisecond, two blocks would tell how long the one between took."""
    return 60.0 * (time.time() // 60)


def check_tracking(config: RunConfig) -> None:
    """Raises :class:`ConfigError` when a tracker that ``config`` asks for is missing; call it before data is read."""
    if config.tracking.mlflow:
        from dpeq.training.mlflow_run import import_mlflow

        import_mlflow()


def open_trackers(
    config: RunConfig, folder: Path, plan: PrivacyPlan, *, resumed_at: int = 0, leads: bool = True
) -> Tracker:
    """The trackers that ``config`` asks for.

    Args:
        folder: the run directory; it exists. TensorBoard writes to ``tb/`` in it, readable by its owner alone.
        resumed_at: the step of the checkpoint that a resumed run goes on from: TensorBoard hides what was drawn after
            it, MLflow goes on in the run that ``mlflow.json`` names.
        leads: False on all ranks but 0, which track nothing.

    Raises:
        ConfigError: when MLflow is not installed, or cannot begin a run where it should.
    """
    sinks: list[Sink] = []
    if leads and config.tracking.mlflow:
        from dpeq.training.mlflow_run import MLflowRun

        sinks.append(MLflowRun(config, folder, plan))
    if leads and config.tracking.tensorboard:
        sinks.append(_TensorBoard(folder / "tb", config, plan, resumed_at))
    return Tracker(sinks, plan, _places(folder), private=config.training.log_private_metrics, start=resumed_at)


def send_report(config: RunConfig, folder: Path) -> None:
    """Gives the report in ``folder`` to the MLflow run that tracked it, if one did; a failure is logged."""
    if config.tracking.mlflow:
        from dpeq.training.mlflow_run import send_files

        send_files(config, folder, ("report.json", "report.html"))


def public_settings(config: RunConfig, plan: PrivacyPlan) -> dict[str, Any]:
    """Plan and configuration as dotted keys, for readers elsewhere: without paths, and without where the curves go.

    A path may name a hospital's share, or a patient; a tracking address may hold a password.
    """
    values = {key: value for key, value in config.model_dump().items() if key != "tracking"}
    values["data"]["card"] = Path(config.data.card).name
    return dict(_flat({"plan": {**plan.to_dict(), "sha256": plan.sha256}, **values}))


def _places(folder: Path) -> list[str]:
    """Told by what lies in the run directory, for an earlier process may have tracked elsewhere than this one."""
    places = ["tb/ in the run directory"] if (folder / "tb").is_dir() else []
    known = folder / "mlflow.json"
    return [*places, json.loads(known.read_text(encoding="utf-8"))["place"]] if known.exists() else places


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and not _is_path(value):
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _is_path(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_path, value))
    return isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", "~", ".")))


def _scores(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of every split with its interval: ``test/auc``, ``test/auc_low``; curves and matrices stay out."""

    def one(tag: str, value: Any) -> Iterator[tuple[str, float]]:
        if isinstance(value, Mapping) and "value" in value:
            yield tag, float(value["value"])
            yield from ((f"{tag}_{end}", float(value[end])) for end in ("low", "high") if end in value)
        elif isinstance(value, int | float):
            yield tag, float(value)

    for split, scores in metrics.items():
        if not isinstance(scores, Mapping):
            continue
        for name, value in scores.items():
            yield from one(f"{split}/{name}", value)
            if name == "recall":
                for number, part in enumerate(value):
                    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", str(part["class"]))  # what MLflow takes in a name
                    yield from one(f"{split}/recall_{number}_{plain}", part)


class _TensorBoard:
    """An event file in ``folder``."""

    def __init__(self, folder: Path, config: RunConfig, plan: PrivacyPlan, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: an import that only training needs

        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # closed before a file is made in it, so that none is ever open to others
        goes_on = any(folder.iterdir())
        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1 if goes_on else None, flush_secs=30)
        if not goes_on:
            settings = public_settings(config, plan)
            for title, keep in (("plan", True), ("configuration", False)):
                rows = [f"    {key}: {value}" for key, value in settings.items() if key.startswith("plan.") == keep]
                self._writer.add_text(title, "\n".join(rows), 0, walltime=_minute())
        self._writer.flush()
        for path in folder.iterdir():
            path.chmod(0o600)

    @property
    def warnings(self) -> list[str]:
        return []  # it writes where ledger and checkpoints are written: what fails here ends the run as there

    def write(self, points: Sequence[Point], at: float) -> None:
        for tag, value, step in points:
            shown = np.float32(value)  # what the file holds; an epsilon must not become smaller by it
            if tag == "epsilon" and float(shown) < value:
                shown = np.nextafter(shown, np.float32(math.inf))
            self._writer.add_scalar(tag, shown, step, walltime=at)

    def close(self, status: str) -> None:
        self._writer.close()
