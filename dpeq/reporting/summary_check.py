"""Verifies a finished ``summary.json`` without trusting it: means, intervals, sentences, the total, runs if at hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpeq.errors import DataError
from dpeq.privacy import accounting
from dpeq.privacy.accounting import upper_bound
from dpeq.reporting.strict import read_strict
from dpeq.reporting.summary import compose_rows, derived, privacy_of, validate
from dpeq.reporting.summary_rows import read_rows

__all__ = ["check_summary", "is_summary"]

# Releases of an accountant differ in the last digits of their discretisation; a false claim differs by far more.
_SLACK = 1e-2
_ROUNDING = 1e-9


def is_summary(path: Path) -> bool:
    """Whether ``path`` is a JSON file that says of itself what a summary says, true or not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and "runs" in value and "guarantee" not in value


def check_summary(path: Path, *, runs: Path | None = None) -> list[str]:
    """Raises :class:`DataError` when ``path`` does not hold together; returns a sentence for each thing verified.

    Everything but the rows is computed anew from the rows, epsilon of each and of all together from their constants.
    Where the run folders lie in ``runs`` (by default beside the summary or one folder above it), rows are read anew,
    too. Without them, scores and steps are as the summary states them.
    """
    path = Path(path)
    try:
        summary = read_strict(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a summary ({error}); name a summary.json that dpeq wrote."
        ) from error
    validate(summary)
    done = [f"The summary satisfies schema version {summary['schema_version']}."]
    rows = summary["runs"]
    with accounting.session("pld", "rdp"):
        done.append(_check_rows(path, summary, rows))
        for key, value in derived(rows).items():
            for place in _differences(key, value, summary[key]):
                raise _refusal(path, f"{place} does not follow from the runs that it lists")
        done.append("Means, intervals, prices and sentences follow from the scores of the runs.")
        done.append(_check_total(path, summary, rows))
        done.append(_check_folders(path, rows, [runs] if runs is not None else [path.parent, path.parent.parent]))
    return done


def _check_rows(path: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if not any(row["state"] == "finished" for row in rows):
        raise _refusal(path, "none of its runs is finished")
    for row in rows:
        name = row["run"]
        if not row["private"] == (row["noise_multiplier"] > 0) == (row["epsilon"] != "inf") == (row["spent"] != "inf"):
            raise _refusal(path, f"the run {name} is private by some of its fields and not by others")
        if row["unit"] != summary["data"]["unit"] or row["data_sha256"] != summary["data"]["sha256"]:
            raise _refusal(path, f"the run {name} is of other data, or of another unit, than the summary")
        if row["steps"] > row["steps_planned"]:
            raise _refusal(path, f"the run {name} took {row['steps']} steps of a plan of {row['steps_planned']}")
        if row["private"] and row["spent"] > row["epsilon"] * (1 + _SLACK):
            raise _refusal(path, f"the run {name} spent epsilon {row['spent']:.4f}, more than its {row['epsilon']:g}")
        if row["private"] and row["steps"]:
            truth = upper_bound(row["sample_rate"], row["noise_multiplier"], row["steps"], row["delta"])[0]
            if row["spent"] < truth - _SLACK * max(1.0, truth):
                raise _refusal(
                    path, f"the run {name} states epsilon {row['spent']:.4f}, its constants cost {truth:.4f}"
                )
    return "Every run's epsilon covers what its constants cost, computed anew."


def _check_total(path: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The stated total may exceed the truth by anything, and fall short of it by rounding alone."""
    stated, truth = summary["privacy"], compose_rows(rows)
    if truth is None:
        claimed = None
    else:
        for key, least in (("epsilon", truth.epsilon), ("rdp", truth.rdp)):
            if least is not None and (stated[key] is None or stated[key] < least - _SLACK * max(1.0, least)):
                raise _refusal(
                    path, f"its total {key} {stated[key]} is below the {least:.4f} that the runs cost together"
                )
        if stated["delta"] != truth.delta:
            raise _refusal(
                path, f"its total is stated at delta {stated['delta']}, its runs were planned at {truth.delta}"
            )
        claimed = replace(
            truth,
            epsilon=stated["epsilon"],
            accountant=stated["accountant"],
            note=stated["accountant_note"],
            rdp=stated["rdp"],
        )
    for place in _differences("privacy", privacy_of(rows, claimed), stated):
        raise _refusal(path, f"{place} does not follow from the runs that it lists")
    if claimed is None:
        return "No run is private, and the summary says so."
    return f"Epsilon {claimed.epsilon:.4f} covers what all private runs cost together, computed anew."


def _check_folders(path: Path, rows: Sequence[Mapping[str, Any]], places: Sequence[Path]) -> str:
    names = [row["run"] for row in rows]
    for place in places:
        if all((place / name / "ledger.jsonl").is_file() for name in names):
            break
    else:
        return "The run folders are not at hand: scores and steps are as the summary states them."
    again, _ = read_rows([place / name for name in names])
    for row in rows:
        now = next(one for one in again if one["run"] == row["run"])
        for difference in _differences(row["run"], {**now, "report": row["report"]}, row):
            raise _refusal(path, f"{difference} is not what lies in {place} (a run may have gone on: build it again)")
    others = {found.parent.name for found in place.glob("*/ledger.jsonl")} - set(names)
    besides = f" Beside them lie {len(others)} runs that it leaves out." if others else ""
    return f"The runs in {place} say the same, and their ledgers are unbroken.{besides}"


def _differences(place: str, true: Any, stated: Any) -> Iterator[str]:
    """Where ``stated`` differs from ``true`` by more than rounding."""
    if isinstance(true, Mapping) and isinstance(stated, Mapping):
        for key in sorted(true.keys() | stated.keys()):
            yield from _differences(f"{place}/{key}", true.get(key), stated.get(key))
    elif isinstance(true, (list, tuple)) and isinstance(stated, list):
        if len(true) != len(stated):
            yield place
        for i, (a, b) in enumerate(zip(true, stated, strict=False)):
            yield from _differences(f"{place}/{i}", a, b)
    elif isinstance(true, float) and isinstance(stated, (int, float)) and not isinstance(stated, bool):
        if not math.isclose(true, stated, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            yield place
    elif true != stated or isinstance(true, bool) != isinstance(stated, bool):
        yield place


def _refusal(path: Path, reason: str) -> DataError:
    return DataError(f"{path} does not hold together: {reason}; do not rely on it.")
