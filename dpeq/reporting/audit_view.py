"""What the page says of attacks that were carried out: what each was, what it found, what the plan allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from dpeq.privacy.audit.result import METHODS
from dpeq.privacy.audit.steps import STEP
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting import numbers
from dpeq.reporting.audit_form import hits_above_limit, is_hidden, is_release, kind_of
from dpeq.reporting.roc import attack_plot

__all__ = ["audit_view", "bad_luck"]

_SHADOWS = (
    "Networks were trained on random halves of the {unit}s themselves; how they answer for one {unit} that they had, "
    "or had not, told the attacker which the network under attack had seen."
)

Rows = list[tuple[str, Any, Any]]

_TITLES = {
    "step": "One private step, over and over",
    "gradient": "A training with made-up gradients",
    "input": "A training with made-up images",
    "member": "Who was in the training set? Shadow models",
}
_KINDS = {STEP: "step", **{name: kind for kind, name in METHODS.items()}}
_SHOWN = {"theoretical", "share", "contradicts", "assumes", "one_step_theoretical", "one_step_contradicts"}
_SHOWN |= {"one_step_epsilon_lower", "trainings", "looks_at_units"}  # in words or in the table


def audit_view(report: Mapping[str, Any]) -> dict[str, Any]:
    """``audits``, one mapping for each; ``audit_summary``, rows with several side by side; ``audit_confidence``.

    ``unfinished`` names those without a result.
    """
    audits = [_audit(report, number, audit) for number, audit in enumerate(report["audits"], 1)]
    rows = [_summary_row(audit) for audit in report["audits"] if not is_hidden(audit)]
    confidences = sorted({audit["confidence"] for audit in report["audits"]})
    return {
        "audits": audits,
        "audit_summary": rows if len(rows) > 1 else [],
        "audit_confidence": " to ".join(numbers.percent_down(confidence) for confidence in confidences),
        "unfinished": report["unfinished_audits"],
    }


def bad_luck(audits: int) -> str:
    """How often bounds that hold with 95 % each are too high by chance alone.

    >>> bad_luck(1)
    'By bad luck alone a bound is too high in up to one audit of twenty.'
    """
    alone = "By bad luck alone a bound is too high in up to one audit of twenty"
    if audits <= 1:
        return f"{alone}."
    some = f"{min(5 * audits, 100)}\N{NO-BREAK SPACE}%"
    return f"{alone}; of {audits} audits at least one may be, with a probability of up to {some}."


def _kind(audit: Mapping[str, Any]) -> str:
    return _KINDS[str(kind_of(audit["method"]))]


def _audit(report: Mapping[str, Any], number: int, audit: Mapping[str, Any]) -> dict[str, Any]:
    details, kind, attack = audit["details"], _kind(audit), audit["attack"]
    if is_hidden(audit):
        return {
            "id": f"audit-{number}",
            "name": audit["name"],
            "title": _TITLES[kind],
            "sentences": _hidden(report, audit),
            "rows": [],
        }
    return {
        "id": f"audit-{number}",
        "name": audit["name"],
        "title": _TITLES[kind],
        "sentences": _sentences(report, kind, audit),
        "rows": _rows(report, audit),
        "of_step": kind == "step",
        "figure": Markup(attack_plot(attack, f"audit-{number}-roc")),
        "rest": [
            ("method", audit["method"]),
            ("members and others judged", f"{attack['members']:,} and {attack['others']:,}"),
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
        "member": _SHADOWS.format(unit=unit),
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
    if details["trainings"]:
        sentences.append(_took(details["trainings"]))
    if is_release(audit) and report["guarantee"]["private"]:
        sentences.append("Its figures are a release of that training, whose loss the ε of this run leaves out.")
    if details.get("looks_at_units"):
        sentences.append(
            f"Its figures were computed from the training {unit}s and from who was in, without noise: the guarantee "
            "does not cover them."
        )
    sentences.append(f"The bound on ε assumes: {details['assumes']}")
    return sentences


def _hidden(report: Mapping[str, Any], audit: Mapping[str, Any]) -> list[str]:
    """Of an attack whose figures are not shown: that it was carried out, and what it contradicted, in words alone."""
    unit, private = report["guarantee"]["unit"], report["guarantee"]["private"]
    outcome = "There is no plan that it could contradict."
    if private:
        outcome = "Its bound on ε did not contradict the plan, which proves nothing: the attack may be weak."
        if hits_above_limit(audit):
            outcome = "It hit more often than the plan allows; its bound on ε did not contradict the plan."
    if audit["epsilon_lower"] is not None:
        outcome = (
            f"It CONTRADICTED the plan: ε is at least {numbers.round_down(audit['epsilon_lower'])}, where the plan has "
            f"{_allowed_epsilon(report)}."
        )
    return [
        _SHADOWS.format(unit=unit),
        _took(audit["details"]["trainings"]),
        f"This attack was carried out. {outcome}",
        f"Its figures were computed from the training {unit}s without noise and tell how many there are, so they are "
        "left out here: they lie with the run, and 'dpeq report RUN --attacks-on-units' shows them.",
        f"The bound on ε assumes: {audit['details']['assumes']}",
    ]


def _took(trainings: int) -> str:
    times = "one further training" if trainings == 1 else f"{trainings:,} further trainings"
    return f"It took {times} on the same data, beside the one that this report is about."


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
        rows.append(
            (
                "Explained (share of the allowed ε)",
                numbers.percent(details["share"], 0),
                None,
            )
        )
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
    plan = PrivacyPlan.from_dict(report["plan"])  # an audit is of all its steps, also where the run took fewer
    return f"at most {numbers.round_up(plan.epsilon_spent)}" if plan.private else "no limit"


def _summary_row(audit: Mapping[str, Any]) -> tuple[Any, ...]:
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
