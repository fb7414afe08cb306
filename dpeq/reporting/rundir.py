"""A finished run as it lies on disk, read once and verified before anything is said about it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.ledger import LedgerEntries, read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.evidence import check_checkpoints, check_complete, check_end, check_start, weights_sha256
from dpeq.training.start import without_seed, written_settings

__all__ = ["MAY_DIFFER", "LedgerFacts", "RunDirectory", "ledger_facts", "read_plan", "read_run"]

_RUN_KEYS = {
    "command": str,
    "started": str,
    "seconds": dict,
    "versions": dict,
    "rng": str,
    "non_private": bool,
    "warnings": list,
    "log_private_metrics": bool,
    "model": dict,
    "data": dict,
}
_SCORES = {"n", "classes", "auc", "accuracy"}
_NEWER = {  # runs before schema 2.0 have none of these
    "average_precision",
    "ece",
    "calibration",
    "by_class",
    "operating_points",
    "precision_recall",
    "majority_average_precision",
}


MAY_DIFFER = ("name", "data.card", "privacy.epsilon", "training.seed", "training.rng", "evaluation.bootstrap")
"""Settings in which runs may differ that are compared as one network under one training. That the data is the same is
known by its fingerprint, wherever its card lies."""


@dataclass(frozen=True)
class LedgerFacts:
    """What a verified ledger says: hash of its last line, steps spent, notes counted by kind, a torn last line."""

    head: str
    steps: int
    notes: dict[str, int]
    torn: str | None


@dataclass(frozen=True)
class RunDirectory:
    path: Path
    plan: PrivacyPlan
    ledger: LedgerFacts
    run: dict[str, Any]
    metrics: dict[str, Any]
    config_sha256: str
    settings: dict[str, Any]
    """What was written in its configuration, flat, but for where and how fast the run went."""
    weights_sha256: str | None
    """Of the file of the weights that were scored; None for an old run whose weights are gone."""


def read_run(path: Path) -> RunDirectory:
    """Reads ``path``; raises :class:`DataError` when a file is missing, broken, or two files contradict each other."""
    if not path.is_dir():
        raise DataError(f"There is no run directory {path}; name the folder that training wrote.")
    plan = read_plan(_file(path, "plan.json"))
    entries, ledger = _ledger(_file(path, "ledger.jsonl"), plan)
    run = _json(_file(path, "run.json"))
    metrics = _json(_file(path, "metrics.json"))
    check_complete(path, entries, plan.steps)
    check_checkpoints(path)
    check_end(path, entries)
    start = check_start(path, entries)
    for key, kind in _RUN_KEYS.items():
        if not isinstance(run.get(key), kind):
            raise DataError(
                f"{path / 'run.json'} has no usable {key!r}; write the run again with this version of dpeq."
            )
    if "weights" not in metrics or not _SCORES.issubset(metrics.get("test") or ()):
        raise DataError(f"{path / 'metrics.json'} holds no test scores; evaluate the run on its test split first.")
    for key in ("auc", "accuracy"):
        score = metrics["test"].get(key) if isinstance(metrics["test"], dict) else None
        if not isinstance(score, dict) or not {"value", "low", "high"} <= score.keys():
            raise DataError(f"{path / 'metrics.json'} has no usable test score {key!r}; train again.")
    for split in ("test", "val"):
        scores = metrics.get(split)
        if scores is not None and not (isinstance(scores, dict) and scores.keys() >= _NEWER):
            raise DataError(
                f"{path / 'metrics.json'} lacks scores of its {split} split that a report shows; "
                f"run 'dpeq evaluate {path}'."
            )
    if run["non_private"] == plan.private:
        raise DataError(
            f"{path / 'run.json'} and plan.json disagree on whether the run was private; the run cannot be trusted, "
            "train again."
        )
    if run["data"].get("unit") != plan.unit:
        raise DataError(
            f"{path / 'run.json'} protects one {run['data'].get('unit')}, plan.json one {plan.unit}; train again."
        )
    if start is not None:
        start.check_record(path / "run.json", run, entries)
    config = hashlib.sha256(_file(path, "config.yaml").read_bytes()).hexdigest()
    run["command"] = without_seed(run["command"])  # older runs recorded it
    weights = weights_sha256(path, str(metrics["weights"]), entries)
    return RunDirectory(path, plan, ledger, run, metrics, config, written_settings(path), weights)


def ledger_facts(path: Path, plan: PrivacyPlan) -> LedgerFacts:
    """Verifies the chain of ``path`` and that it is the ledger of ``plan``; raises :class:`DataError` otherwise."""
    return _ledger(path, plan)[1]


def _ledger(path: Path, plan: PrivacyPlan) -> tuple[LedgerEntries, LedgerFacts]:
    entries = read_ledger(path)
    if entries[0]["plan_sha256"] != plan.sha256:
        raise DataError(f"The ledger {path} belongs to another plan than plan.json; restore the plan it was made with.")
    notes = Counter(entry["kind"] for entry in entries if entry["kind"] not in ("plan", "step"))
    return entries, LedgerFacts(entries.head, entries.steps, dict(sorted(notes.items())), entries.torn)


def read_plan(path: Path) -> PrivacyPlan:
    """The plan in ``path``; a plan that cannot be used is damaged data here, not a mistake of the user."""
    try:
        return PrivacyPlan.read(path)
    except ConfigError as error:
        raise DataError(str(error)) from error


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"The run directory {folder} has no {name}; the run did not finish, train again.")
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); restore it or train again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; restore it or train again.")
    return value
