"""What the page says of attacks that were carried out: what each was, what it found, what the plan allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from dpeq.reporting import numbers
from dpeq.reporting.roc import attack_plot

__all__ = ["audit_view"]

Rows = list[tuple[str, Any, Any]]

_TITLES = {
    "step": "One private step, over and over",
    "gradient": "A training with made-up gradients",
    "input": "A training with made-up images",
    "shadow": "Who was in the training set? Shadow models",
    "other": "Another attack",
}
_METHODS = {"gradient canaries": "gradient", "input canaries": "input", "shadow models": "shadow"}
_SHOWN = {"theoretical", "share", "contradicts", "assumes", "one_step_theoretical", "one_step_contradicts"}
_SHOWN |= {"one_step_epsilon_lower", "trainings", "looks_at_units"}  # in words or in the table


def audit_view(report: Mapping[str, Any]) -> dict[str, Any]:
    """``audits``, one mapping for each; ``audit_summary``, rows with several side by side; ``audit_confidence``."""
    audits = [_audit(report, number, audit) for number, audit in enumerate(report["audits"], 1)]
    rows = [_summary_row(report, audit) for audit in report["audits"]]
    confidences = sorted({audit["confidence"] for audit in report["audits"]})
    return {
        "audits": audits,
        "audit_summary": rows if len(rows) > 1 else [],
        "audit_confidence": " to ".join(numbers.percent_down(confidence) for confidence in confidences),
    }


def _kind(audit: Mapping[str, Any]) -> str:
    if audit["attack"]["of"] == "step":
        return "step"
    return next((kind for words, kind in _METHODS.items() if audit["method"].startswith(words)), "other")


def _audit(report: Mapping[str, Any], number: int, audit: Mapping[str, Any]) -> dict[str, Any]:
    details, kind = audit["details"], _kind(audit)
    return {
        "id": f"audit-{number}",
        "name": audit["name"],
        "title": _TITLES[kind],
        "sentences": _sentences(report, kind, audit),
        "rows": _rows(report, audit),
        "of_step": kind == "step",
        "figure": Markup(attack_plot(audit["attack"], f"audit-{number}-roc")),
        "rest": [
            ("method", audit["method"]),
            ("members and others judged", f"{audit['attack']['members']:,} and {audit['attack']['others']:,}"),
            *((key.replace("_", " "), _detail(key, value)) for key, value in details.items() if key not in _SHOWN),
        ],
    }


def _sentences(report: Mapping[str, Any], kind: str, audit: Mapping[str, Any]) -> list[str]:
    """What kind of attack it was, what its limits are, what it rests on and what it took."""
    unit, details, attack = report["guarantee"]["unit"], audit["details"], audit["attack"]
    told = {
        "step": f"One step of the training was taken {attack['members'] + attack['others']:,} times on a few made-up "
        f"images, with and without one {unit} of the largest influence there is, and the attacker saw every noised "
        "sum.",
        "gradient": f"The data were trained on once more, with {attack['members'] + attack['others']:,} made-up "
        "gradients of the largest influence there is, each in or out by a fair coin, and the attacker saw every "
        "noised sum.",
        "input": f"The data were trained on once more, with {attack['members'] + attack['others']:,} made-up images, "
        "each in or out by a fair coin, and the attacker asked the network of the end alone how sure it is of their "
        "labels.",
        "shadow": f"Networks were trained on random parts of the {unit}s themselves; how they answer for a {unit} that "
        "they had, or had not, told the attacker whom the network under attack had seen.",
        "other": "It is named below.",
    }[kind]
    sentences = [told]
    if kind == "step":
        steps = report["plan"]["steps"]
        coins = (
            f"The {unit} was in every step, so that sampling is not tested. " if details.get("in_every_step") else ""
        )
        sentences.append(
            f"{coins}Hits, ROC curve and their limits are those of this single step; what all {steps:,} steps of the "
            "training reveal is said by its ε alone."
        )
    if trainings := details.get("trainings", 0):
        times = "one further training" if trainings == 1 else f"{trainings:,} further trainings"
        sentences.append(f"It took {times} on the same data, beside the one that this report is about.")
    if details.get("looks_at_units"):
        sentences.append(
            f"Its figures were computed from the training {unit}s and from who was in, without noise: the guarantee "
            "does not cover them."
        )
    sentences.append(f"The bound on ε assumes: {details['assumes']}")
    return sentences


def _rows(report: Mapping[str, Any], audit: Mapping[str, Any]) -> Rows:
    """(what, what the attack found, what the plan allows)."""
    details, attack, private = audit["details"], audit["attack"], report["guarantee"]["private"]
    rows: Rows = [
        (
            f"ε of the training, at δ = {numbers.scientific(audit['delta'])}",
            f"at least {numbers.round_down(audit['epsilon_lower'])}",
            _allowed_epsilon(report),
        )
    ]
    if details["share"] is not None:
        rows.append(("Share of it that the attack explains", numbers.percent(details["share"], 0), None))
    if "one_step_epsilon_lower" in details:
        rows.append(
            (
                "ε of one step",
                f"at least {numbers.round_down(details['one_step_epsilon_lower'])}",
                f"at most {numbers.round_up(details['one_step_theoretical'])}" if private else "no limit",
            )
        )
    for row in attack["hit_rates"]:
        found = Markup('{} <span class="range">({} to {})</span>').format(
            *(numbers.percent(row[key]) for key in ("hits", "low", "high"))
        )
        limit = "no limit" if row["allowed"] is None else f"at most {numbers.percent_up(row['allowed'])}"
        if row["allowed"] is not None:
            limit = Markup('{} <span class="range">at {} false alarms</span>').format(
                limit, numbers.percent_up(row["false_alarms_high"], 2)
            )
        rows.append((f"Hits at {_share(row['rate'])} false alarms", found, limit))
    return [*rows, ("AUC of the attack (chance: 0.500)", f"{attack['auc']:.3f}", None)]


def _allowed_epsilon(report: Mapping[str, Any]) -> str:
    guarantee = report["guarantee"]
    if not guarantee["private"]:
        return "no limit"
    return f"at most {numbers.round_up(guarantee['epsilon'])}"


def _summary_row(report: Mapping[str, Any], audit: Mapping[str, Any]) -> tuple[Any, ...]:
    share, last = audit["details"]["share"], audit["attack"]["hit_rates"][-1]
    return (
        f"{_TITLES[_kind(audit)]} ({audit['name']})",
        numbers.round_down(audit["epsilon_lower"]),
        None if share is None else numbers.percent(share, 0),
        f"{numbers.percent(last['hits'])} at {_share(last['rate'])}"
        + (" (one step)" if audit["attack"]["of"] == "step" else ""),
    )


def _detail(name: str, value: Any) -> str:
    """Lower bounds are rounded down, upper ones up; see :func:`dpeq.reporting.audit.odd_detail` for the rest."""
    if isinstance(value, float) and "_lower" in name:
        return numbers.round_down(value, 3)
    if isinstance(value, float) and name.endswith(("_high", "_at_most", "theoretical")):
        return numbers.round_up(value, 3)
    return numbers.show(value)


def _share(value: float) -> str:
    return f"{100 * value:g}\N{NO-BREAK SPACE}%"
