"""The report as data: everything the page shows and a program may want to check, in one dict with a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpeq import __version__
from dpeq.errors import DataError
from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.remembered import remembered_curve
from dpeq.privacy.risk import Risk, assess
from dpeq.reporting.accountants import compared
from dpeq.reporting.assumptions import list_assumptions
from dpeq.reporting.audit import hide_units, read_audits, refuted, trainings_for_audits, unfinished_audits
from dpeq.reporting.checklist import checklist
from dpeq.reporting.files import check_schema
from dpeq.reporting.guarantee import Spent, readers, sampling, spent, statement
from dpeq.reporting.risks import group_risk
from dpeq.reporting.rundir import MAY_DIFFER, RunDirectory, read_run

__all__ = ["SCHEMA_VERSION", "build_report", "recorded", "recorded_audits"]

SCHEMA_VERSION = "3.1"


def build_report(
    run_dir: Path,
    *,
    companion: Path | None = None,
    images_per_patient: int | None = None,
    images: int | None = None,
    data_root: Path | None = None,
    attacks_on_units: bool = False,
) -> dict[str, Any]:
    """The report of the run in ``run_dir``; it satisfies ``privacy_reports/report.schema.json``.

    ``companion`` is a run without privacy on the same data, whose scores stand beside this one's.
    ``images_per_patient`` is the most images that one patient has in the training set, a published number: with it the
    report of an image-level run also says what limits hold for a whole patient. ``images`` asks for so many pictures of
    the test split, from ``data_root`` where the data is elsewhere now. ``attacks_on_units`` shows the figures of
    attacks on the training units themselves, which no noise covers and which tell how many units there are. On one
    machine the same files give the same report, byte for byte; another processor may round the last digits of
    accountants otherwise.

    Raises :class:`DataError` when the run is incomplete, its ledger broken, its parts contradict each other, or the
    companion is private or was tested on other data; :class:`ConfigError` for an ``images_per_patient`` that says
    nothing; :class:`~dpeq.privacy.accounting.AccountingError` when accountants contradict each other.
    """
    with accounting.session("pld"):  # one process answers for the guarantee, the risk and the curve
        source = read_run(Path(run_dir))
        built = _report(source, companion, images_per_patient, _images(source, images, data_root), attacks_on_units)
    report: dict[str, Any] = json.loads(json.dumps(built))  # tuples become lists, as they will be after writing
    check_schema(report, "report")
    return report


def _report(
    source: RunDirectory,
    companion: Path | None,
    images_per_patient: int | None,
    images: dict[str, Any] | None,
    attacks_on_units: bool,
) -> dict[str, Any]:
    plan, steps = source.plan, source.ledger.steps
    loss, risk = spent(plan, steps), assess(plan, steps)
    group = group_risk(plan, steps, images_per_patient)
    audited = refuted(read_audits(source.path), plan)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": source.path.resolve().name,
        "guarantee": _guarantee(source, loss, risk, refuted=audited is not None),
        "accountants": compared(plan, steps),
        "risk": None if risk is None else risk.to_dict(),
        "group_risk": None if group is None else group.to_dict(),
        **recorded(source, companion, attacks_on_units=attacks_on_units),
        "images": images,
        "epsilon_curve": [[step, eps] for step, eps in remembered_curve(plan)] if plan.private else [],
    }
    report["assumptions"] = list_assumptions(report)
    return {**report, "checklist": checklist(report)}


def recorded(source: RunDirectory, companion: Path | None, *, attacks_on_units: bool) -> dict[str, Any]:
    """The entries of the report that its files alone decide: no accountant is asked, so every machine says the same."""
    plan, run = source.plan, source.run
    return {
        "run": source.path.resolve().name,
        **recorded_audits(source.path, plan, attacks_on_units=attacks_on_units),
        "utility": {**source.metrics["test"], "weights": source.metrics["weights"], "split": "test"},
        "validation": source.metrics.get("val"),
        "companion": _companion(source, Path(companion)) if companion is not None else None,
        "symmetry": source.metrics.get("symmetry"),
        "model": run["model"],
        "plan": plan.to_dict(),
        "ledger": {
            "head": source.ledger.head,
            "steps": source.ledger.steps,
            "notes": source.ledger.notes,
            "torn": source.ledger.torn,
            "verified": True,
        },
        "data": run["data"],
        "resources": {
            "seconds": run["seconds"],
            "peak_memory_mib": run.get("peak_memory_mib"),
            "energy": run.get("energy"),
            "device": run.get("device"),
            "threads": run.get("threads"),
            "platform": run.get("platform"),
        },
        "provenance": {
            "command": run["command"],
            "started": run["started"],
            "stopped": run.get("stopped"),
            "seed": None,  # whoever knows it can compute the noise: it does not travel with the guarantee
            "rng": run["rng"],
            "processes": run.get("processes"),
            "log_private_metrics": run["log_private_metrics"],
            # What assumptions and points of attention are written from, so that they can be written anew from these.
            "warnings": run["warnings"],
            "tracking": run.get("tracking", []) if run["log_private_metrics"] else [],  # else no page speaks of it
            "starting_weights": run.get("starting_weights"),
            "resumed": run.get("resumed", 0),
            "steps_lost": run.get("steps_lost", 0),
            "dpeq": run.get("dpeq"),
            "git": run.get("git"),
            "versions": run["versions"],
            "config_sha256": source.config_sha256,
            "plan_sha256": plan.sha256,
            "weights_sha256": source.weights_sha256,
            "report_dpeq": __version__,
        },
    }


def recorded_audits(run: Path, plan: PrivacyPlan, *, attacks_on_units: bool) -> dict[str, Any]:
    """The entries that RUN/audits decides; ``run`` needs no more than a plan beside it."""
    audits = read_audits(run)
    return {
        "audits": audits if attacks_on_units else [hide_units(audit, plan) for audit in audits],
        "unfinished_audits": unfinished_audits(run),
        "audit_trainings": trainings_for_audits(run, plan),
    }


def _images(source: RunDirectory, count: int | None, data_root: Path | None) -> dict[str, Any] | None:
    if count is None:
        return None
    from dpeq.reporting.images import evaluation_images  # loads torch

    return evaluation_images(source.path, count, data_root=data_root)


def _guarantee(source: RunDirectory, loss: Spent, risk: Risk | None, *, refuted: bool) -> dict[str, Any]:
    plan = source.plan
    return {
        "private": plan.private,
        "epsilon": loss.epsilon if plan.private else "inf",
        "delta": plan.delta,
        "mu": loss.mu,
        "unit": plan.unit,
        "neighbouring": plan.neighbouring,
        "sampling": sampling(plan, source.run["rng"]),
        "accountant": loss.accountant,
        "accountant_note": loss.note,
        "steps": loss.steps,
        "complete": loss.complete,
        "statement": statement(plan, loss, refuted),
        **readers(plan, loss, risk, refuted),
    }


def _companion(source: RunDirectory, path: Path) -> dict[str, Any]:
    """Scores of a non-private run, after making sure that they can be compared with those of ``source``."""
    other = read_run(path)
    if other.plan.private:
        raise DataError(f"The companion {path} was trained with privacy; name a run with epsilon inf.")
    ours, theirs = source.run["data"], other.run["data"]
    for key in ("name", "sha256", "classes"):
        if ours.get(key) != theirs.get(key):
            raise DataError(
                f"The companion {path} was trained on other data ({key}: {theirs.get(key)!r} instead of "
                f"{ours.get(key)!r}); train it on the same data."
            )
    if other.metrics["test"]["n"] != source.metrics["test"]["n"]:
        raise DataError(f"The companion {path} was tested on another number of cases; evaluate both on one test set.")
    if other.plan.unit != source.plan.unit:
        raise DataError(
            f"The companion {path} has one {other.plan.unit} as its unit, this run one {source.plan.unit}; train both "
            "with one unit."
        )
    keys = ("name", "group", "parameters", "norm", "fields", "restriction", "activation")
    same = all(source.run["model"].get(key) == other.run["model"].get(key) for key in keys)
    return {
        "run": other.path.resolve().name,
        "private": False,
        "same_network": same,
        "same_settings": same and _lasting(source) == _lasting(other),
        "model": other.run["model"],
        "utility": {**other.metrics["test"], "weights": other.metrics["weights"], "split": "test"},
        "steps": other.ledger.steps,
        "command": other.run["command"],
        "seconds": other.run["seconds"],
    }


def _lasting(source: RunDirectory) -> dict[str, Any]:
    return {key: value for key, value in source.settings.items() if key not in MAY_DIFFER}
