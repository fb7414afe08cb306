"""Tables that put a run on record: the model, the data, what it took, where it comes from, the checklists."""

from __future__ import annotations

from typing import Any

from dpeq.reporting import numbers

__all__ = ["record_view"]

Rows = list[tuple[str, str]]
_LAYERS = {
    "top": "Top: the guarantee",
    "middle": "Middle: algorithm and use",
    "bottom": "Bottom: data, access, security",
}


def record_view(report: dict[str, Any]) -> dict[str, Any]:
    data, lists = report["data"], report["checklist"]
    return {
        "model_rows": _model_rows(report["model"]),
        "data_rows": _data_rows(data),
        "counts": [
            (name, numbers.show(count["images"]), numbers.show(count["units"]))
            for name, count in data["counts"].items()
            if count
        ],
        "resource_rows": _resource_rows(report["resources"]),
        "environment_rows": _environment_rows(report),
        "evidence_rows": _evidence_rows(report),
        "ponomareva": lists["ponomareva"],
        "nist": {title: [row for row in lists["nist"] if row["layer"] == layer] for layer, title in _LAYERS.items()},
    }


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


def _resource_rows(resources: dict[str, Any]) -> Rows:
    seconds = {name: value for name, value in resources["seconds"].items() if value is not None}
    rows = [(f"Time: {name}", numbers.duration(value)) for name, value in seconds.items()]
    rows.append(("Time: total", numbers.duration(sum(seconds.values()))))
    memory, energy = resources["peak_memory_mib"], resources["energy"]
    rows.append(("Peak memory", "not measured" if memory is None else f"{memory:,.0f} MiB"))
    rows.append(("Energy", "not estimated" if energy is None else _energy(energy["kwh"])))
    if energy is not None:
        rows.append(("Energy: how it was found", energy["basis"]))
    rows += [
        (label, numbers.show(resources[key]))
        for key, label in (("device", "Device"), ("threads", "Threads"), ("platform", "Platform"))
        if resources[key] is not None
    ]
    return rows


def _energy(kwh: float) -> str:
    return f"{numbers.signal(kwh, 2)} kWh" if kwh >= 0.1 or kwh == 0 else f"{numbers.signal(1000 * kwh, 2)} Wh"


def _environment_rows(report: dict[str, Any]) -> Rows:
    run = report["provenance"]
    rows = [("Started", run["started"])]
    rows.append(("Random numbers", "operating system" if run["rng"] == "os" else f"seed {run['seed']}"))
    rows.append(("Private quantities logged", numbers.show(run["log_private_metrics"])))
    return rows + [(name, version) for name, version in sorted(run["versions"].items())]


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
