"""The main job in one call: train under a target epsilon, evaluate, report. Recipes and the command line call this.

>>> from dpeq.config import load_config
>>> from dpeq.pipeline import train_and_report
>>> outcome = train_and_report(load_config("pneumoniamnist", ["privacy.epsilon=3"]))  # doctest: +SKIP
>>> outcome.report["guarantee"]["statement"]  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeq.config import RunConfig
from dpeq.training.distributed import joined
from dpeq.training.follow import follow
from dpeq.training.prepare import choose_device
from dpeq.training.run import Interruptible, Observer, Silent, make_folder, run, uninterruptible
from dpeq.training.tracking import send_report

__all__ = ["Outcome", "train_and_report"]


@dataclass(frozen=True)
class Outcome:
    """A finished run: its directory, its report (as in report.json) and where the report was published."""

    run: Path
    baseline: Path | None
    report: dict[str, Any]
    html: Path


def train_and_report(
    config: RunConfig,
    *,
    runs: Path = Path("runs"),
    reports: Path = Path("privacy_reports"),
    command: str = "dpeq.pipeline.train_and_report",
    baseline: bool = False,
    observer: Observer | None = None,
    resume: Path | None = None,
    interruptible: Interruptible = uninterruptible,
    accept: Callable[[str], None] = lambda fingerprint: None,
    exact_folder: bool = False,
) -> Outcome | None:
    """Trains ``config`` and writes the report to its run directory and to ``reports/<name>/``.

    Args:
        runs: folder of run directories.
        reports: folder of published reports; the newest report of a name replaces the one before, one without
            privacy only its like.
        command: recorded in the report.
        baseline: also train the same network on the same data without noise (clipped alike) and show it beside. That
            run has **no** privacy; its scores in the report are not covered by the guarantee, and the report says so.
        resume, interruptible, accept, exact_folder: see :func:`dpeq.training.run.run`; a baseline goes to the folder
            beside the resumed run.

    Started by torchrun, all processes share every step. The first one does everything else; the others return None.
    """
    twin = _without_noise(config) if baseline and not math.isinf(config.privacy.epsilon) else None
    with joined(choose_device(config.training.device)) as ranks:
        if not ranks.leads:
            splits, stopped = follow(config, ranks)
            if twin is not None and not stopped:
                follow(twin, ranks, splits)
            return None
        shared: dict[str, Any] = {"observer": observer or Silent(), "interruptible": interruptible, "ranks": ranks}
        return _lead(
            config, twin, runs, reports, command, resume, {**shared, "accept": accept, "exact_folder": exact_folder}
        )


def _lead(
    config: RunConfig,
    twin: RunConfig | None,
    runs: Path,
    reports: Path,
    command: str,
    resume: Path | None,
    options: dict[str, Any],
) -> Outcome:
    private = not math.isinf(config.privacy.epsilon)
    # A run without privacy never takes the place of a private run's report.
    published = reports / (config.name if private else f"{config.name}-nonprivate")
    if resume is None:
        make_folder(runs)
    else:
        runs = resume.parent
    make_folder(published)
    shared = {**options, "out": runs}
    finished = run(config, command=command, resume=resume, **shared)
    folder = finished.folder
    other = None
    if twin is not None:
        other = run(twin, command=f"{command} (baseline)", splits=finished.splits, **shared).folder
    from dpeq.reporting.html import write_report  # load scipy.stats and matplotlib, after the training
    from dpeq.reporting.model import build_report

    options["observer"].stage("Writing the report")
    report = build_report(folder, companion=other)
    html, _ = write_report(report, published)
    write_report(report, folder)  # after the published one: it says that nothing is left to do
    send_report(config, folder)
    return Outcome(folder, other, report, html)


def _without_noise(config: RunConfig) -> RunConfig:
    values = config.model_dump()
    values["name"] = f"{config.name}-nonprivate"
    values["privacy"]["epsilon"] = math.inf
    return RunConfig.model_validate(values)
