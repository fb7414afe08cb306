"""The face of a report: one HTML page that needs nothing but itself, and the two files that a run leaves behind."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dpeq.reporting import numbers
from dpeq.reporting.guarantee import advantage
from dpeq.reporting.model import validate
from dpeq.reporting.plots import Series, confusion_plot, epsilon_plot, roc_plot, score_plot
from dpeq.resources import asset

__all__ = ["page", "render_html", "write_report"]

_SCORES = (("auc", "AUC"), ("balanced_accuracy", "Balanced accuracy"), ("accuracy", "Accuracy"))
_ACCOUNTANTS = (
    ("pld", "pld", "PLD (dp-accounting)", "upper bound"),
    ("prv_upper", "prv", "PRV (prv-accountant)", "upper bound"),
    ("prv_estimate", "", "PRV (prv-accountant)", "estimate"),
    ("prv_lower", "", "PRV (prv-accountant)", "lower bound"),
    ("opacus_prv", "opacus_prv", "PRV (Opacus)", "upper bound"),
    ("rdp", "rdp", "Rényi (Opacus)", "upper bound"),
)
_ROC_RATES = (0.01, 0.05, 0.1, 0.2, 0.5)

Rows = list[tuple[str, str]]


def write_report(report: dict[str, Any], out_dir: Path) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.json`` into ``out_dir``, each whole or not at all; returns their paths."""
    validate(report)
    page = render_html(report)
    data = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    html_path, json_path = out_dir / "report.html", out_dir / "report.json"
    _write(html_path, page)
    _write(json_path, data)
    return html_path, json_path


def page(template_name: str, **values: Any) -> str:
    """The template of ``privacy_reports`` filled with ``values``; the same values give the same bytes.

    Templates extend ``base.html.j2`` and take tables and figures from ``macros.html.j2``. Everything is escaped but
    what was made as :class:`~markupsafe.Markup`. Raises jinja2's UndefinedError when a value is missing.
    """
    return _environment().get_template(template_name).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(asset("privacy_reports", "base.html.j2").parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        up=numbers.round_up,
        sci=numbers.scientific,
        one_in=numbers.one_in,
        pct=numbers.percent,
        pct_up=numbers.percent_up,
        show=numbers.show,
    )
    return environment


def render_html(report: dict[str, Any]) -> str:
    """The page of ``report`` (see ``privacy_reports/report.html.j2``); the same report gives the same bytes."""
    return page("report.html.j2", report=report, **_view(report))


def _view(report: dict[str, Any]) -> dict[str, Any]:
    guarantee, utility, data = report["guarantee"], report["utility"], report["data"]
    private = guarantee["private"]
    other = report["companion"]["utility"] if report["companion"] else None
    majority = {
        "auc": 0.5,
        "balanced_accuracy": 1.0 / len(utility["classes"]),
        "accuracy": utility["majority_accuracy"],
    }
    curve, roc_of = _first_curve(utility)
    return {
        "summary": _summary(report),
        "attention": sum(entry["kind"] == "attention" for entry in report["assumptions"]),
        "only_epsilon": (1 + advantage(guarantee["epsilon"], guarantee["delta"], None)) / 2 if private else None,
        "mechanism": _mechanism(report["plan"]),
        "accountants": _accountants(report),
        "scores": [
            {
                "name": name,
                "ours": utility[key],
                "majority": f"{majority[key]:.3f}" if key in majority else "–",
                "theirs": other[key] if other else None,
            }
            for key, name in (*_SCORES, ("brier", "Brier score (lower is better)"))
        ],
        "confusion": [
            {"name": name, "counts": row, "found": numbers.percent(row[i] / sum(row)) if sum(row) else "–"}
            for i, (name, row) in enumerate(zip(utility["classes"], utility["confusion"], strict=True))
        ],
        "roc_of": roc_of,
        "roc_points": [
            {"fpr": numbers.percent(rate, 0), "tpr": numbers.percent(_at(curve, rate))} for rate in _ROC_RATES
        ],
        "figures": _figures(report, majority),
        "model_rows": _model_rows(report["model"]),
        "data_rows": _data_rows(data),
        "counts": [{"name": name, **count} for name, count in data["counts"].items() if count],
        "run_rows": _run_rows(report),
        "environment_rows": _environment_rows(report),
        "evidence_rows": _evidence_rows(report),
        "resamples": numbers.show(utility.get("bootstrap", {}).get("resamples", 1000)),
        "resampled": _resampled(utility),
    }


def _resampled(utility: dict[str, Any]) -> str:
    owners = utility.get("bootstrap", {}).get("owners")
    return "within each class" if owners is None else f"all cases of a patient together, of {owners:,} patients"


def _summary(report: dict[str, Any]) -> str:
    guarantee, utility = report["guarantee"], report["utility"]
    scores = (
        f"On {utility['n']:,} test cases it reaches an AUC of {utility['auc']['value']:.3f} and answers "
        f"{numbers.percent(utility['accuracy']['value'])} correctly; always giving the most frequent answer scores "
        f"{numbers.percent(utility['majority_accuracy'])}."
    )
    if not guarantee["private"]:
        return f"This model gives no protection to the {guarantee['unit']}s it was trained on. {scores}"
    seeded = (
        "Its random numbers came from a fixed seed, so the limit holds only against those who do not know the seed. "
        if report["provenance"]["rng"] == "seeded"
        else ""
    )
    return (
        f"This model protects every {guarantee['unit']} it was trained on with a proven limit on what it can reveal "
        f"(differential privacy with ε = {numbers.round_up(guarantee['epsilon'])}). {seeded}{scores}"
    )


def _figures(report: dict[str, Any], majority: dict[str, float]) -> dict[str, Markup | None]:
    guarantee, utility, companion = report["guarantee"], report["utility"], report["companion"]
    series = [Series("this model", _points(utility))]
    if companion:
        series.append(Series("NON-PRIVATE", _points(companion["utility"]), "companion"))
    flat = {name: (majority[key], majority[key], majority[key]) for key, name in _SCORES}
    series.append(Series("most frequent class", flat, "reference"))
    curves = [utility["roc"]] if isinstance(utility["roc"], dict) else utility["roc"]
    labels = [curve.get("class", utility["classes"][1]) for curve in curves]
    area = f"the area under the curve is {utility['auc']['value']:.3f}" + (", averaged" if len(curves) > 1 else "")
    drawn: dict[str, Markup | None] = {
        "scores": Markup(score_plot(series)),
        "roc": Markup(roc_plot(curves, labels, area)),
        "confusion": Markup(confusion_plot(utility["confusion"], utility["classes"])),
        "epsilon": None,
    }
    if guarantee["private"] and report["epsilon_curve"]:
        points = [(step, epsilon) for step, epsilon in report["epsilon_curve"]]
        spent = (guarantee["steps"], guarantee["epsilon"])
        drawn["epsilon"] = Markup(epsilon_plot(points, spent, report["plan"]["epsilon_target"]))
    return drawn


def _points(utility: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    return {name: (utility[key]["value"], utility[key]["low"], utility[key]["high"]) for key, name in _SCORES}


def _first_curve(utility: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The ROC curve that the small table samples: the only one, or the mean of all at the sampled rates."""
    if isinstance(utility["roc"], dict):
        return utility["roc"], utility["classes"][1]
    mean = [sum(_at(curve, rate) for curve in utility["roc"]) / len(utility["roc"]) for rate in _ROC_RATES]
    return {"fpr": list(_ROC_RATES), "tpr": mean}, "mean over classes"


def _at(curve: dict[str, Sequence[float]], rate: float) -> float:
    """Largest sensitivity of a threshold on the curve whose false alarm rate is at most ``rate``."""
    return max((tpr for fpr, tpr in zip(curve["fpr"], curve["tpr"], strict=True) if fpr <= rate), default=0.0)


def _mechanism(plan: dict[str, Any]) -> list[dict[str, str]]:
    unit = plan["unit"]
    rows = (
        ("Sampling", plan["sampling"].capitalize(), f"each {unit} enters each step independently"),
        ("Sampling rate q", numbers.signal(plan["sample_rate"]), f"chance of a {unit} to enter one step"),
        ("Steps T", numbers.show(plan["steps"]), "updates of the model that the plan allows"),
        (
            "Clipping norm C",
            numbers.signal(plan["max_grad_norm"]),
            f"largest influence of one {unit} on one step ({plan['clipping'].replace('_', ' ')} clipping)",
        ),
        (
            "Noise multiplier σ",
            numbers.signal(plan["noise_multiplier"], 5),
            "standard deviation of the noise, divided by C",
        ),
        (
            "Batch normaliser B",
            numbers.show(plan["expected_batch_size"]),
            f"expected {unit}s per step; the sum is divided by it",
        ),
        ("Views K", numbers.show(plan["views"]), f"pictures of one {unit} averaged before clipping"),
        ("Published size", numbers.show(plan["public_units"]), f"training {unit}s, as published; sets q"),
        ("Neighbouring sets", "add or remove", f"data sets that differ by one {unit}"),
        ("δ", numbers.scientific(plan["delta"]), "failure allowance"),
        ("Target ε", "∞" if plan["epsilon_target"] == "inf" else numbers.show(plan["epsilon_target"]), "asked for"),
    )
    return [{"name": name, "value": value, "meaning": meaning} for name, value, meaning in rows]


def _accountants(report: dict[str, Any]) -> list[dict[str, Any]]:
    answers, used = report["plan"]["epsilon"], report["plan"]["accountant"]
    rows = []
    for key, accountant, name, kind in _ACCOUNTANTS:
        if key not in answers:
            continue
        value = math.inf if answers[key] == "inf" else answers[key]
        text = numbers.round_down(value, 3) if key == "prv_lower" else numbers.round_up(value, 3)
        rows.append({"name": name, "kind": kind, "value": text, "used": accountant == used})
    return rows


def _model_rows(model: dict[str, Any]) -> Rows:
    known = {
        "name": "Network",
        "group": "Symmetry group",
        "parameters": "Parameters",
        "fields": "Feature fields per stage",
        "restriction": "Restriction to a subgroup",
        "norm": "Normalisation",
        "norm_groups": "Groups of the normalisation",
        "activation": "Activation",
        "dim": "Dimensions",
        "input_shape": "Input (channels, then voxels)",
    }
    rows = [(label, numbers.show(model[key])) for key, label in known.items() if key in model]
    return rows + [(key.replace("_", " "), numbers.show(model[key])) for key in sorted(model) if key not in known]


def _data_rows(data: dict[str, Any]) -> Rows:
    card = data["card"] or {}
    symmetries = card.get("symmetries") or {}
    rows = [
        ("Data set", data["title"]),
        ("Source", card.get("source") or card.get("url")),
        ("Licence", card.get("licence")),
        ("Modality", card.get("modality")),
        ("Classes", data["classes"]),
        ("Unit of privacy", data["unit"]),
        ("Left and right matter", symmetries.get("laterality_matters")),
        ("Orientation matters", symmetries.get("orientation_matters")),
        ("Same scale along all axes", symmetries.get("isotropic")),
        ("On symmetry", symmetries.get("note")),
        ("Citation", card.get("citation")),
        ("Keyed fingerprint (HMAC-SHA-256)", data["sha256"]),
    ]
    return [(label, numbers.show(value)) for label, value in rows if value is not None and value != ""]


def _run_rows(report: dict[str, Any]) -> Rows:
    run, resources = report["provenance"], report["resources"]
    seconds = {name: value for name, value in resources["seconds"].items() if value is not None}
    rows = [("Started", run["started"])]
    rows += [(f"Time: {name}", numbers.duration(value)) for name, value in seconds.items()]
    rows.append(("Time: total", numbers.duration(sum(seconds.values()))))
    if resources["peak_memory_mib"] is not None:
        rows.append(("Peak memory", f"{resources['peak_memory_mib']:,.0f} MiB"))
    rows.append(("Random numbers", "operating system" if run["rng"] == "os" else f"seed {run['seed']}"))
    rows.append(("Private quantities logged", numbers.show(run["log_private_metrics"])))
    return rows


def _environment_rows(report: dict[str, Any]) -> Rows:
    resources, run = report["resources"], report["provenance"]
    rows = [("Device", resources["device"]), ("Threads", resources["threads"]), ("Platform", resources["platform"])]
    rows += [(name, version) for name, version in sorted(run["versions"].items())]
    return [(label, numbers.show(value)) for label, value in rows if value is not None]


def _evidence_rows(report: dict[str, Any]) -> Rows:
    run, ledger = report["provenance"], report["ledger"]
    notes = "".join(f", {count} note(s) of kind {kind}" for kind, count in ledger["notes"].items())
    return [
        ("Ledger", f"verified, {ledger['steps']:,} steps{notes}"),
        ("Head hash of the ledger", ledger["head"]),
        ("Hash of the plan", run["plan_sha256"]),
        ("Hash of the configuration", run["config_sha256"]),
        ("Code", f"dpeq {run['dpeq'] or 'unknown'}, commit {run['git'] or 'unknown'}"),
    ]


def _write(path: Path, text: str) -> None:
    """Writes beside ``path``, syncs, then renames: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
