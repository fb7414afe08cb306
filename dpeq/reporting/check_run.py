"""A report held against what lies around it: the files of its run, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from dpeq import __version__
from dpeq.reporting.audit_form import shows_units
from dpeq.reporting.check_privacy import Disagreement
from dpeq.reporting.model import recorded, recorded_audits
from dpeq.reporting.rundir import RunDirectory, ledger_facts, read_plan, read_run

__all__ = ["UNVERIFIED", "WITHOUT_RUN", "check_page", "check_run", "difference"]

UNVERIFIED = "Not verified: "
"""How a sentence begins that says what a check could not decide."""

WITHOUT_RUN = (
    f"{UNVERIFIED}the run is not at hand (--run names its folder). Its name, the model, the data, the ledger, which "
    "audits there were, what they counted, which were begun and not finished, the symmetry, warnings, times, versions, "
    "thresholds, groups of patients, and ends of intervals are as the report states them."
)


def check_run(report: dict[str, Any], folder: Path) -> list[str]:
    """A sentence for each thing that ``folder`` confirms; raises :class:`Disagreement` at the first that it does not.

    Raises :class:`~dpeq.errors.DataError` when the files in ``folder`` are damaged or contradict each other.
    """
    plan = read_plan(folder / "plan.json")
    if plan.sha256 != report["provenance"]["plan_sha256"]:
        raise Disagreement(f"{folder / 'plan.json'} is not the plan of this report")
    facts = ledger_facts(folder / "ledger.jsonl", plan)
    if (facts.head, facts.steps) != (report["ledger"]["head"], report["ledger"]["steps"]):
        raise Disagreement(f"the ledger in {folder} has grown or changed since; build the report again")
    done = [f"The ledger in {folder} is unbroken and ends in the hash that the report names."]
    shown = shows_units(report["audits"])
    if not (folder / "metrics.json").is_file():
        _compare(report, recorded_audits(folder, plan, attacks_on_units=shown), folder)
        return [
            *done,
            f"Its audits are those of the files in {folder}.",
            f"{UNVERIFIED}{folder} holds no scores; all but plan, ledger and audits is as the report states it.",
        ]
    source = read_run(folder)
    companion = _companion(report, source)
    expected = recorded(source, companion, attacks_on_units=shown)
    notes = []
    if report["companion"] is not None and companion is None:
        expected["companion"] = report["companion"]
        notes.append(
            f"{UNVERIFIED}the run without privacy is not beside {folder}; its scores are as the report states them."
        )
    expected["provenance"]["report_dpeq"] = report["provenance"]["report_dpeq"]  # of whoever wrote the report
    _compare(report, expected, folder)
    if report["images"] is not None:
        notes.append(f"{UNVERIFIED}whether the images are of the test split, and the answers to them the model's.")
    if report["group_risk"] is not None:
        notes.append(f"{UNVERIFIED}that no patient has more than {report['group_risk']['group']:,} training images.")
    return [*done, f"Scores, model, data, audits, warnings and origin are those of the files in {folder}.", *notes]


def _compare(report: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    for key, value in json.loads(json.dumps(expected)).items():
        if differs := difference(report[key], value, key):
            raise Disagreement(f"{differs} in {folder}; build the report again")


def _companion(report: dict[str, Any], source: RunDirectory) -> Path | None:
    """The folder of the companion, where it lies beside the run's."""
    if report["companion"] is None:
        return None
    name, own = report["companion"]["run"], source.path.resolve()
    folder = own.parent / name
    beside = Path(name).name == name and folder.resolve() != own and (folder / "run.json").is_file()
    return folder if beside else None


def check_page(path: Path, draw: Callable[[], str], written_by: str) -> list[str]:
    """Compares the page beside ``path`` with what ``draw`` makes of it; raises :class:`Disagreement`.

    ``written_by`` is the version of dpeq that wrote ``path``: another one may have drawn the same otherwise.
    """
    page = path.with_suffix(".html")
    done = []
    if page.is_file():
        try:
            drawn = draw()
        except UndefinedError as error:
            raise Disagreement(f"it is older than this page and lacks a part ({error}); build it again") from error
        if page.read_bytes() == drawn.encode("utf-8"):
            done.append(f"{page.name} shows what {path.name} says.")
        elif written_by == __version__:
            raise Disagreement(f"{page.name} beside it shows something else; build both again")
        else:
            done.append(f"{UNVERIFIED}{page.name}, which dpeq {written_by} drew and this is {__version__}.")
    if page.with_suffix(".pdf").is_file():
        done.append(f"{UNVERIFIED}{page.stem}.pdf; rely on {page.name} or {path.name}.")
    return done


def difference(said: Any, found: Any, place: str) -> str | None:
    """Where two values of JSON differ, as the beginning of a sentence; None if nowhere. True is not 1.

    >>> difference({"auc": [0.9, 0.8]}, {"auc": [0.9, 0.7]}, "utility")
    'utility/auc/1 is 0.8, and 0.7'
    """
    if isinstance(said, dict) and isinstance(found, dict):
        for key in [*found, *(key for key in said if key not in found)]:
            if key not in said or key not in found:
                return f"{place}/{key} is {'missing' if key not in said else 'added'}, and not so"
            if differs := difference(said[key], found[key], f"{place}/{key}"):
                return differs
        return None
    if isinstance(said, list) and isinstance(found, list):
        if len(said) != len(found):
            return f"{place} has {len(said)} entries, and {len(found)}"
        pairs = enumerate(zip(said, found, strict=True))
        return next((differs for i, (a, b) in pairs if (differs := difference(a, b, f"{place}/{i}"))), None)
    same = said == found and isinstance(said, bool) == isinstance(found, bool)
    return None if same else f"{place} is {_short(said)}, and {_short(found)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
