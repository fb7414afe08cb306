"""Tables and figures about privacy: risk, accountants, constants of the mechanism."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from dpeq.reporting import numbers
from dpeq.reporting.privacy_plots import accountant_plot, epsilon_plot, profile_plot, trade_off_plot

__all__ = ["best_guess", "privacy_view"]

Rows = list[tuple[Any, ...]]
_ACCOUNTANTS = {
    "pld": "PLD (dp-accounting)",
    "prv": "PRV (prv-accountant)",
    "opacus_prv": "PRV (Opacus)",
    "rdp": "Rényi (Opacus)",
}


def privacy_view(report: dict[str, Any]) -> dict[str, Any]:
    rows = _accountants(report["accountants"]["epsilon"])
    return {
        "mechanism": _mechanism(report["plan"]),
        "accountants": [
            (
                _ACCOUNTANTS[name],
                numbers.round_down(row["lower"], 3) if "lower" in row else None,
                f"{row['estimate']:.3f}" if "estimate" in row else None,
                numbers.round_up(row["upper"], 3) if "upper" in row else None,
            )
            for name, row in rows.items()
        ],
        "accountant_used": [_ACCOUNTANTS.get(report["guarantee"]["accountant"], "")],
        "accountants_missing": {_ACCOUNTANTS[name]: why for name, why in report["accountants"]["missing"].items()},
        "risk_rows": _risk_rows(report["risk"]) if report["risk"] else None,
        "group_rows": _group_rows(report) if report["group_risk"] else None,
        "privacy_figures": _figures(report, rows),
    }


def best_guess(report: dict[str, Any]) -> float | None:
    """Largest chance to guess right whether a unit took part, at even odds; None where nothing limits it."""
    if not report["risk"]:
        return None
    return float(next(row["best_guess"] for row in report["risk"]["posteriors"] if row["prior"] == 0.5))


def _accountants(epsilon: dict[str, float]) -> dict[str, dict[str, float]]:
    """{"pld": 8.0, "prv_lower": 7.9, ...} by accountant: {"pld": {"upper": 8.0}, "prv": {"lower": 7.9}, ...}."""
    rows: dict[str, dict[str, float]] = {}
    for name in _ACCOUNTANTS:
        found = {
            kind: epsilon[f"{name}_{kind}"] for kind in ("lower", "estimate", "upper") if f"{name}_{kind}" in epsilon
        }
        if name in epsilon:
            found = {"upper": epsilon[name]}
        if found:
            rows[name] = found
    return rows


def _mechanism(plan: dict[str, Any]) -> Rows:
    unit = plan["unit"]
    return [
        ("Sampling", plan["sampling"].capitalize(), f"each {unit} enters each step independently"),
        ("Sampling rate q", numbers.signal(plan["sample_rate"]), f"chance of one {unit} to enter one step"),
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
        ("Published size N", numbers.show(plan["public_units"]), f"training {unit}s, as published; sets q"),
        ("Neighbouring sets", "add or remove", f"data sets that differ by one {unit}"),
        ("δ", numbers.scientific(plan["delta"]), "failure allowance"),
        ("Target ε", "∞" if plan["epsilon_target"] == "inf" else numbers.show(plan["epsilon_target"]), "asked for"),
    ]


def _risk_rows(risk: dict[str, Any]) -> dict[str, Any]:
    up = _limit
    posteriors = risk["posteriors"]
    return {
        "hits": [
            (_share(row["false_alarms"]), _share(row["false_alarms"]), up(row["hits"])) for row in risk["hit_rates"]
        ],
        "reconstructions": [(_share(row["base_rate"]), up(row["success"])) for row in risk["reconstructions"]],
        "beliefs": [
            (
                _share(row["prior"]),
                up(row["usually"]),
                up(row["hardly_ever"]),
                up(row["from_epsilon"]),
                up(row["flagged"]),
                up(row["best_guess"]),
            )
            for row in posteriors
        ],
        "exception": numbers.percent(posteriors[0]["exception"], 0),
        "summary": [
            ("Advantage: hits minus false alarms", f"at most {_limit(risk['advantage'])}"),
            ("μ of Gaussian differential privacy", "none" if risk["mu"] is None else numbers.round_up(risk["mu"], 3)),
            (
                "Regret of μ as a summary of the profile",
                "none" if risk["regret"] is None else numbers.round_up(risk["regret"], 4),
            ),
            (
                "The limits rest on",
                {"profile": "the whole privacy profile", "mu": "μ", "epsilon": "ε and δ alone"}[risk["basis"]],
            ),
        ],
    }


def _group_rows(report: dict[str, Any]) -> Rows:
    """One image beside all images of one patient."""
    risk, group = report["risk"], report["group_risk"]
    even = [next(p["best_guess"] for p in one["posteriors"] if p["prior"] == 0.5) for one in (risk, group)]
    rows: Rows = [("ε at the same δ", *(_epsilon(one["epsilon"]) for one in (risk, group)))]
    rows += [
        (f"Hits at {_share(a['false_alarms'])} false alarms", _limit(a["hits"]), _limit(b["hits"]))
        for a, b in zip(risk["hit_rates"], group["hit_rates"], strict=True)
    ]
    rows.append(("Best guess, at even odds", _limit(even[0]), _limit(even[1])))
    rows += [
        (f"Reconstruction, from {_share(a['base_rate'])}", _limit(a["success"]), _limit(b["success"]))
        for a, b in zip(risk["reconstructions"], group["reconstructions"], strict=True)
    ]
    return rows


def _figures(report: dict[str, Any], rows: dict[str, dict[str, float]]) -> dict[str, Markup | None]:
    guarantee, risk, plan = report["guarantee"], report["risk"], report["plan"]
    drawn: dict[str, Markup | None] = {"epsilon": None, "trade_off": None, "profile": None, "accountants": None}
    if not guarantee["private"]:
        return drawn
    quoted, delta = guarantee["epsilon"], guarantee["delta"]
    if report["epsilon_curve"]:
        points = [(step, epsilon) for step, epsilon in report["epsilon_curve"]]
        drawn["epsilon"] = Markup(epsilon_plot(points, (guarantee["steps"], quoted), plan["epsilon_target"]))
    if quoted > 0:
        drawn["trade_off"] = Markup(trade_off_plot(risk["trade_off"], quoted, delta))
    if sum(d >= 1e-10 for _, d in risk["profile"]) > 1:
        drawn["profile"] = Markup(profile_plot(risk["profile"], (quoted, delta)))
    if rows:
        drawn["accountants"] = Markup(
            accountant_plot([(_ACCOUNTANTS[name], row) for name, row in rows.items()], quoted)
        )
    return drawn


def _limit(share: float) -> str:
    """A limit on an attacker's success; a bound that reads 100 % limits nothing, and says so."""
    text = numbers.percent_up(share, 2 if share < 0.01 else 1)
    return "no limit" if text.startswith("100") else text


def _share(value: float) -> str:
    return f"{100 * value:g}\N{NO-BREAK SPACE}%"


def _epsilon(value: float | str) -> str:
    return "∞" if value == "inf" else numbers.round_up(float(value))
