"""Several runs as rows of one table, after making sure that they can stand in one: the same data, the same unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.models.labels import label_of
from dpeq.privacy.composition import read_spent
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import read_audits, refuted, trainings_for_audits
from dpeq.reporting.guarantee import spent
from dpeq.reporting.rundir import MAY_DIFFER, ledger_facts, read_plan, read_run
from dpeq.training.evidence import check_checkpoints
from dpeq.training.start import Start

__all__ = ["SCORES", "number", "read_rows"]

SCORES = ("auc", "accuracy", "balanced_accuracy", "average_precision", "ece")


@dataclass(frozen=True)
class _Run:
    path: Path
    start: Start
    plan: PrivacyPlan
    row: dict[str, Any]
    data: dict[str, Any] | None


def read_rows(runs: Sequence[Path], *, below: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for every run folder, and what is said of their common data.

    Rows stand network by network (in the order of ``runs``), epsilon by epsilon. A row's ``report`` is the relative
    path of the run's report where one lies below the folder ``below``, else None.

    Raises:
        DataError: names the run that is damaged, that lacks a score, or whose data, unit or test set is another's.
        ConfigError: when a run is named twice or is another's copy, or a folder is no run.
    """
    resolved = [Path(run).resolve() for run in runs]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("A run was named twice; name each once.")
    read = [_read(Path(run), below) for run in runs]
    first_of: dict[str, _Run] = {}
    for run in read:
        if (same := first_of.setdefault(run.start.run, run)) is not run:
            raise ConfigError(
                f"{run.path} is a copy of {same.path}, and a copy is no repetition; leave one of them out (where both "
                "went on after the copy was made, both have spent since)."
            )
    finished = [run for run in read if run.data is not None]
    if not finished:
        raise DataError("None of these runs is finished, so there are no scores to summarise; finish one first.")
    first = finished[0]
    for run in read:
        _check_same(first, run)
    _name_networks(read)
    order = list(dict.fromkeys(run.row["model"] for run in read))
    rows = sorted((run.row for run in read), key=lambda r: (order.index(r["model"]), number(r["epsilon"]), r["run"]))
    assert first.data is not None
    data = {key: first.data[key] for key in ("name", "title", "sha256", "unit", "classes")}
    return rows, data


def number(epsilon: float | str) -> float:
    """An epsilon as JSON has it, as a number."""
    return math.inf if epsilon == "inf" else float(epsilon)


def _read(path: Path, below: Path | None) -> _Run:
    if not path.is_dir():
        raise DataError(f"There is no run directory {path}; name the folder that training wrote.")
    start = Start.read(path)
    row: dict[str, Any] = {"run": path.resolve().name, "state": "unfinished"}
    finished = (path / "run.json").is_file()
    if finished:
        source = read_run(path)
        plan, facts = source.plan, source.ledger
        row["state"] = "finished"
    else:
        plan = read_plan(path / "plan.json")
        facts = ledger_facts(path / "ledger.jsonl", plan)
        start.check_files(path, read_ledger(path / "ledger.jsonl"))
        check_checkpoints(path)
    steps = read_spent(path).steps
    if not finished and steps == plan.steps:
        row["state"] = "failed"  # it has spent everything and was not scored, unless that is going on
    loss = spent(plan, steps)
    row |= {
        "model": label_of(start.settings["model.name"], start.settings.get("model.group")),
        "epsilon": plan.epsilon_target if plan.private else "inf",
        "private": plan.private,
        "spent": loss.epsilon if plan.private else "inf",
        "delta": plan.delta,
        "unit": plan.unit,
        "sample_rate": plan.sample_rate,
        "noise_multiplier": plan.noise_multiplier,
        "steps": steps,
        "steps_planned": plan.steps,
        "seeded": start.seed is not None,  # the number itself would undo the guarantee that stands beside it
        "plan_sha256": plan.sha256,
        "ledger_head": facts.head,
        "data_sha256": start.data_sha256,
        "network": None,
        "n": None,
        "scores": None,
        "majority": None,
        "seconds": None,
        "audit_trainings": trainings_for_audits(path, plan),
        "refuted": refuted(read_audits(path), plan),
        "report": None if below is None else _report(path, plan.private, Path(below)),
    }
    if not finished:
        return _Run(path, start, plan, row, None)
    test, model = source.metrics["test"], source.run["model"]
    missing = [key for key in (*SCORES, "majority_accuracy", "majority_average_precision") if test.get(key) is None]
    if missing:
        raise DataError(f"{path} has no test score {missing[0]}; run 'dpeq evaluate {path}' first.")
    row["network"] = {key: model.get(key) for key in ("name", "group", "parameters")}
    row["n"] = test["n"]
    row["scores"] = {key: {side: float(test[key][side]) for side in ("value", "low", "high")} for key in SCORES}
    row["majority"] = {
        "auc": 0.5,
        "accuracy": float(test["majority_accuracy"]),
        "balanced_accuracy": 1.0 / (len(test["classes"]) - len(test.get("absent_classes", ()))),
        "average_precision": float(test["majority_average_precision"]),
    }
    row["seconds"] = round(sum(source.run["seconds"].values()), 1)
    return _Run(path, start, plan, row, source.run["data"])


def _report(path: Path, private: bool, below: Path) -> str | None:
    """Where the run's report lies below ``below``, as seen from there."""
    below, name = below.resolve(), path.resolve().name
    published = below / (name if private else f"{name}-nonprivate")
    for candidate in (published / "report.html", path.resolve() / "report.html"):
        if candidate.is_file() and candidate.is_relative_to(below):
            return candidate.relative_to(below).as_posix()
    return None


def _check_same(first: _Run, other: _Run) -> None:
    """Of unfinished runs the fingerprint alone is known; it covers all splits and their classes."""
    if other.plan.unit != first.plan.unit:
        raise DataError(
            f"{other.path} protects one {other.plan.unit}, {first.path} one {first.plan.unit}; summarise runs of one "
            "unit of privacy."
        )
    if other.start.data_sha256 != first.start.data_sha256:
        raise DataError(
            f"{other.path} was not trained on the data of {first.path}, or under another key of fingerprints (runs of "
            "one parent folder share it); summarise runs on the same data."
        )
    if other.data is None or first.data is None:
        return
    for key in ("name", "classes", "unit"):
        if other.data.get(key) != first.data.get(key):
            raise DataError(
                f"{other.path} has {key} {other.data.get(key)!r}, {first.path} {first.data.get(key)!r}; summarise runs "
                "on the same data."
            )
    if other.row["n"] != first.row["n"]:
        raise DataError(
            f"{other.path} was tested on {other.row['n']} cases, {first.path} on {first.row['n']}; evaluate all runs "
            "on one test set."
        )


def _name_networks(runs: Sequence[_Run]) -> None:
    """Runs are repetitions only under equal settings: labels of one name are told apart by what differs."""
    settings = [{k: v for k, v in run.start.settings.items() if k not in MAY_DIFFER} for run in runs]
    for label in {run.row["model"] for run in runs}:
        alike = [i for i, run in enumerate(runs) if run.row["model"] == label]
        keys = sorted(set().union(*(settings[i] for i in alike)))
        differing = [key for key in keys if len({repr(settings[i].get(key)) for i in alike}) > 1]
        for i in alike if differing else ():
            told = ", ".join(f"{key}={settings[i].get(key)}" for key in differing)
            runs[i].row["model"] = f"{label} ({told})"
