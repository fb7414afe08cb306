"""Verifies a finished ``summary.json`` without trusting it: means, intervals, sentences, the total, runs if at hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy import accounting
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.ledger import read_ledger
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.check_run import UNVERIFIED, check_page
from dpeq.reporting.files import check_schema
from dpeq.reporting.rundir import read_plan
from dpeq.reporting.strict import read_strict
from dpeq.reporting.summary import compose_rows, derived, privacy_of
from dpeq.reporting.summary_html import render_summary
from dpeq.reporting.summary_rows import read_rows
from dpeq.training.start import Start

__all__ = ["check_summary", "is_summary"]

_BELOW = 1e-6  # relative; rounding of another machine, and nothing more: a bound below the truth is false
_ROUNDING = 1e-9
_NO_LINK = set(":?#%\\")  # a link within a folder needs none of these


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
    Each row whose run folder lies in ``runs`` (by default beside the summary or one folder above it) is read anew, too;
    ``summary.html`` beside the summary must show it. What could not be verified is said in sentences that begin with
    :data:`~dpeq.reporting.check_run.UNVERIFIED`.
    """
    path = Path(path)
    try:
        summary = read_strict(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a summary ({error}); name a summary.json that dpeq wrote."
        ) from error
    check_schema(summary, "summary")
    done = [f"The summary satisfies schema version {summary['schema_version']}."]
    rows = summary["runs"]
    with accounting.session("pld", "rdp"):
        done.append(_check_rows(path, summary, rows))
        for key, value in derived(rows).items():
            for place in _differences(key, value, summary[key]):
                raise _refusal(path, f"{place} does not follow from the runs that it lists")
        done.append("Means, intervals, prices and sentences follow from the scores of the runs.")
        done.append(_check_total(path, summary, rows))
        places = [runs] if runs is not None else [path.parent, path.parent.parent]
        done += _check_folders(path, summary, places)
        done += _left_out(rows, places)
    try:
        done += check_page(path, lambda: render_summary(summary), summary["provenance"]["dpeq"])
    except Disagreement as error:
        raise _refusal(path, str(error)) from error
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
        whole = row["steps"] == row["steps_planned"]
        if row["steps"] > row["steps_planned"] or (row["state"] == "unfinished") == whole:
            raise _refusal(
                path,
                f"the run {name} is {row['state']} and took {row['steps']} steps of a plan of {row['steps_planned']}",
            )
        if row["report"] is not None and not _is_link(row["report"], name):
            raise _refusal(path, f"the run {name} links to {row['report']!r}, which is no report of it")
        if row["refuted"] is not None and not row["private"]:
            raise _refusal(path, f"the run {name} is not private, so that no audit can have refuted it")
        if row["private"] and not row["spent"] <= row["epsilon"] * (1 + _BELOW):
            raise _refusal(path, f"the run {name} spent epsilon {row['spent']:.4f}, more than its {row['epsilon']:g}")
        if row["private"] and row["steps"]:
            truth = upper_bound(row["sample_rate"], row["noise_multiplier"], row["steps"], row["delta"])[0]
            if not row["spent"] >= truth * (1 - _BELOW):
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
            if least is not None and (stated[key] is None or not stated[key] >= least * (1 - _BELOW)):
                raise _refusal(
                    path, f"its total {key} {stated[key]} is below the {least:.4f} that the runs cost together"
                )
        if stated["delta"] != truth.delta:
            raise _refusal(
                path, f"its total is stated at delta {stated['delta']}, its runs were planned at {truth.delta}"
            )
        claimed = replace(truth, epsilon=stated["epsilon"], rdp=stated["rdp"])
    for place in _differences("privacy", privacy_of(rows, claimed), stated):
        raise _refusal(path, f"{place} does not follow from the runs that it lists")
    if claimed is None:
        return "No run is private, and the summary says so."
    return f"Epsilon {claimed.epsilon:.4f} covers what all private runs cost together, computed anew."


def _check_folders(path: Path, summary: Mapping[str, Any], places: Sequence[Path]) -> list[str]:
    """Each row against the folder of its run, wherever one lies in ``places``."""
    rows = {row["run"]: row for row in summary["runs"]}
    if len(rows) < len(summary["runs"]):
        raise _refusal(path, "it lists a run twice")
    found = {
        name: next((place / name for place in places if (place / name / "ledger.jsonl").is_file()), None)
        for name in rows
    }
    folders = [folder for folder in found.values() if folder is not None]
    if not any((folder / "run.json").is_file() for folder in folders):
        return [
            f"{UNVERIFIED}the run folders are not at hand: data, scores, steps and audits are as the summary states "
            "them."
        ]
    again, data = read_rows(folders, below=path.parent)
    whole = len(again) == len(rows)
    for now in again:
        row = rows[now["run"]]
        if now["report"] is None or row["report"] is None:  # reports are written, and moved, at any time
            now = now | {"report": row["report"]}
        if not whole and _label(now) == _label(row):  # labels of one network are told apart by all runs together
            now = now | {"model": row["model"]}
        for difference in _differences(row["run"], now, row):
            raise _refusal(
                path, f"{difference} is not what lies in {found[row['run']]} (a run may have gone on: build it again)"
            )
    for difference in _differences("data", data, summary["data"]):
        raise _refusal(path, f"{difference} is not what the runs say")
    if whole:
        return [f"The runs in {folders[0].parent} say the same, and their ledgers are unbroken."]
    missing = ", ".join(name for name, folder in found.items() if folder is None)
    return [
        f"{len(again)} of {len(rows)} runs are at hand and say the same; their ledgers are unbroken.",
        f"{UNVERIFIED}{missing}: no folder of that name is at hand; scores, steps and audits are as the summary states "
        "them.",
    ]


def _left_out(rows: Sequence[Mapping[str, Any]], places: Sequence[Path]) -> list[str]:
    """Private runs on the same data that lie there and that the total does not count."""
    named, heads = {row["run"] for row in rows}, {row["ledger_head"] for row in rows}
    missed: list[str] = []
    seen: set[Path] = set()  # a link beside the folder that it leads to is one run
    for place in places:
        for folder in sorted(ledger.parent for ledger in place.glob("*/ledger.jsonl")):
            if folder.name in named:  # the run itself; another of its name one folder above is not
                named.remove(folder.name)
                continue
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                same = Start.read(folder).data_sha256 == rows[0]["data_sha256"]
                ours = same and read_plan(folder / "plan.json").private
                ours = ours and read_ledger(folder / "ledger.jsonl").head not in heads  # a copy spent nothing more
            except (ConfigError, DataError):
                ours = True  # what cannot be read may have spent anything
            missed += [str(folder)] if ours else []
    if not missed:
        return []
    return [
        f"{UNVERIFIED}that no other run spent anything on the same patients. The summary leaves out "
        f"{', '.join(missed)}: what they spent adds to its total."
    ]


def _label(row: Mapping[str, Any]) -> str:
    return str(row["model"]).split(" (")[0]


def _is_link(link: str, run: str) -> bool:
    """Whether ``link`` leads to a report of ``run`` in a folder below, and nowhere else."""
    parts = link.split("/")
    return (
        not _NO_LINK & set(link)
        and len(parts) > 1
        and not any(part in ("", ".", "..") for part in parts)
        and parts[-1] == "report.html"
        and parts[-2] in (run, f"{run}-nonprivate")
    )


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
