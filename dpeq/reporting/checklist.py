"""Two checklists for whoever must decide, each answered from the facts of the very run.

* Ponomareva, Hazimeh, Kurakin, Xu, Denison, McMahan, Vassilvitskii, Chien, Thakurta 2023, "How to DP-fy ML" (JAIR 77,
  arXiv 2303.00654), section 5.3: what a report of a private training should say, and the tiers of epsilon.
* NIST SP 800-226 (2025, doi 10.6028/NIST.SP.800-226): the pyramid of what a guarantee rests on, from its parameters at
  the top to the protection of the data at the bottom.

The answers follow from the report alone, so a check can derive them again. What no run can know begins with
:data:`UNKNOWN`, and is for a person to answer.
"""

from __future__ import annotations

from typing import Any

from dpeq.reporting.audit import refutation
from dpeq.reporting.audit_form import hits_above_limit, is_hidden
from dpeq.reporting.numbers import percent, percent_down, round_down, round_up, scientific, show, signal

__all__ = ["UNKNOWN", "checklist", "tier"]

UNKNOWN = "This report cannot know: "
_ACCOUNTANTS = {
    "pld": "the privacy loss distribution of dp-accounting, rounded pessimistically, in both directions",
    "prv": "the upper bound of prv-accountant",
    "opacus_prv": "the upper bound of Opacus' PRV accountant",
    "rdp": "Opacus' Rényi bound",
    "none": "none",
}

Items = list[tuple[str, str, str]]


def checklist(report: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """{"ponomareva": [{item, answer, where}], "nist": [{layer, item, answer, where}]} for a report without it."""
    ponomareva = [*_setting(report), *_constants(report), *_result(report)]
    nist = [
        (layer, *row)
        for layer, rows in (("top", _top(report)), ("middle", _middle(report)), ("bottom", _bottom(report)))
        for row in rows
    ]
    return {
        "ponomareva": [{"item": item, "answer": answer, "where": where} for item, answer, where in ponomareva],
        "nist": [
            {"layer": layer, "item": item, "answer": answer, "where": where} for layer, item, answer, where in nist
        ],
    }


def tier(epsilon: float | str) -> str:
    """The tier of Ponomareva et al. in which epsilon lies.

    >>> tier(8.0)
    'tier 2 of 3 (above 1 and at most 10: reasonable protection)'
    """
    if epsilon == "inf":
        return "no tier: there is no protection"
    if float(epsilon) <= 1.0:
        return "tier 1 of 3 (at most 1: strong protection)"
    if float(epsilon) <= 10.0:
        return "tier 2 of 3 (above 1 and at most 10: reasonable protection)"
    return "tier 3 of 3 (above 10: weak protection, or none)"


def _setting(report: dict[str, Any]) -> Items:
    guarantee, run = report["guarantee"], report["provenance"]
    unit = guarantee["unit"]
    logged = "; training losses and gradient norms were logged as well and are NOT covered"
    covered = "The final weights, their running average, every checkpoint, and whatever is computed from these"
    released = covered + (logged if run["log_private_metrics"] else "") + "."
    accesses = f"This training: {guarantee['steps']:,} steps. Not the validation and test scores, and no other run."
    if not guarantee["private"]:
        accesses, released = "None: the run is not private.", "Nothing is covered."
    processes = run.get("processes") or 1
    shared = f", by {processes} processes that trust each other" if processes > 1 else ""
    return [
        (
            "Setting",
            f"Central: whoever trains holds the images{shared}"
            + ("; noise is added once, to each step's sum." if guarantee["private"] else "; no noise is added."),
            "#limits",
        ),
        (
            "Unit of privacy",
            "One patient, with all images of that patient." if unit == "patient" else _image_unit(report),
            "#guarantee",
        ),
        ("Neighbouring data sets", f"One {unit} is added or removed.", "#mechanism"),
        ("Accesses to the data that are covered", accesses, "#limits"),
        (
            "Tuning",
            "Not covered, and not known to this report: runs that settings were chosen by add their own loss."
            if guarantee["private"]
            else "Nothing is covered.",
            "#limits",
        ),
        ("Releases that are covered", released, "#guarantee"),
    ]


def _image_unit(report: dict[str, Any]) -> str:
    group = report["group_risk"]
    if group is None:
        return "One image. A patient with several images is protected less; how much less is not stated."
    return f"One image. For a patient with {group['group']:,} images the limits are given apart."


def _constants(report: dict[str, Any]) -> Items:
    plan, guarantee = report["plan"], report["guarantee"]
    unit, steps = plan["unit"], guarantee["steps"]
    rounds = f"about {steps * plan['sample_rate']:.3g} passes over the data"
    return [
        ("Number of units N", f"{plan['public_units']:,} {unit}s, the published number; it sets q.", "#mechanism"),
        ("Batch size B", f"{plan['expected_batch_size']:,} {unit}s expected per step.", "#mechanism"),
        ("Steps T", f"{steps:,} taken of {plan['steps']:,} planned, {rounds}.", "#mechanism"),
        ("Sampling rate q", f"{signal(plan['sample_rate'])} per {unit} and step.", "#mechanism"),
        (
            "Noise multiplier",
            f"{signal(plan['noise_multiplier'], 5)} clipping norms." if guarantee["private"] else "0: no noise.",
            "#mechanism",
        ),
        (
            "Clipping norm C",
            f"{signal(plan['max_grad_norm'])}, {plan['clipping'].replace('_', ' ')}; of the mean over "
            f"{plan['views']:,} view{'s' * (plan['views'] > 1)} of a unit, so no part of a batch counts twice.",
            "#mechanism",
        ),
        ("Sampling as run", guarantee["sampling"]["run"], "#mechanism"),
        ("Sampling as accounted", guarantee["sampling"]["accounted"], "#mechanism"),
    ]


def _result(report: dict[str, Any]) -> Items:
    guarantee, run = report["guarantee"], report["provenance"]
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in sorted(run["versions"]))
    beside = len({name.split("_")[0] for name in report["accountants"]["epsilon"]})
    accountant = _ACCOUNTANTS[guarantee["accountant"]]
    if not guarantee["private"]:
        said = [
            ("Accountant", "None: there is nothing to account for.", "#mechanism"),
            ("Epsilon", "Infinite: no protection.", "#guarantee"),
        ]
    else:
        epsilon = round_up(guarantee["epsilon"], 2)
        units = report["plan"]["public_units"]
        said = [
            ("Accountant", f"The figure is {accountant}; {beside} accountants are compared.", "#mechanism"),
            (
                "Delta",
                f"{scientific(guarantee['delta'])}, which is {signal(guarantee['delta'] * units)} times 1 / N.",
                "#guarantee",
            ),
            (
                "Epsilon",
                f"{epsilon} was claimed for each {guarantee['unit']} and is REFUTED by an audit: no tier."
                if refutation(report)
                else f"{epsilon} for each {guarantee['unit']}: {tier(guarantee['epsilon'])}.",
                "#guarantee",
            ),
        ]
    return [
        *said,
        ("Formal statement", guarantee["statement"], "#guarantee"),
        (
            "Code and versions",
            f"dpeq {run['dpeq'] or 'of an unknown version'}, commit {run['git'] or 'unknown'}; {versions}.",
            "#provenance",
        ),
        (
            "Evidence",
            f"A ledger of {report['ledger']['steps']:,} steps ends in hash {report['ledger']['head'][:16]}; "
            "'dpeq report --check' recomputes the figures.",
            "#provenance",
        ),
    ]


def _top(report: dict[str, Any]) -> Items:
    guarantee = report["guarantee"]
    if not guarantee["private"]:
        parameters = "Epsilon is infinite: no protection."
    else:
        parameters = "REFUTED by an audit; claimed were " if refutation(report) else ""
        parameters += f"ε = {round_up(guarantee['epsilon'], 2)} at δ = {scientific(guarantee['delta'])}"
        parameters += f", μ = {round_up(guarantee['mu'], 3)}." if guarantee["mu"] is not None else "."
    return [
        ("Privacy parameters", parameters, "#guarantee"),
        ("Unit of privacy", "One patient." if guarantee["unit"] == "patient" else _image_unit(report), "#guarantee"),
    ]


def _middle(report: dict[str, Any]) -> Items:
    guarantee, run = report["guarantee"], report["provenance"]
    tried = report["audits"] or report["unfinished_audits"]
    correct = f"The ledger is unbroken and has {report['ledger']['steps']:,} steps"
    if guarantee["private"]:
        correct += "; epsilon was recomputed from the plan's constants"
    correct += f"; {_audited(report)}"
    channels = "Noise is a discrete Gaussian in whole numbers, so its digits tell nothing; timing of steps is outside."
    if not guarantee["private"]:
        channels = "Not examined: there is no guarantee that they could break."
    elif run["rng"] == "seeded":
        channels = "OPEN: the noise came from a fixed seed; whoever knows it can subtract the noise."
    if run["log_private_metrics"]:
        channels += " Losses and gradient norms were logged without noise."
    return [
        ("Algorithms and their correctness", correct, "#audits" if tried else "#provenance"),
        ("Utility", _utility(report), "#performance"),
        ("Bias", _bias(report["utility"]), "#subgroups" if report["utility"].get("subgroups") else "#performance"),
        ("Side channels", channels, "#limits"),
        (
            "Trust model",
            "Central: the institution that trains sees the images and is trusted with them, as is its machine.",
            "#limits",
        ),
    ]


def _audited(report: dict[str, Any]) -> str:
    """What audits found, of several the strongest; where one refutes the guarantee, that and nothing else."""
    if found := refutation(report):
        return f"REFUTED. {found}"
    audits, unfinished = report["audits"], report["unfinished_audits"]
    shown = [audit for audit in audits if not is_hidden(audit)]
    told = []
    if shown:
        best = max(shown, key=lambda audit: float(audit["epsilon_lower"]))
        who = "an audit" if len(shown) == 1 else f"the strongest of {len(shown)} audits"
        told.append(
            f"{who} found epsilon to be at least {round_down(best['epsilon_lower'], 3)} with confidence "
            f"{percent_down(best['confidence'])}"
        )
    for audit in filter(is_hidden, audits):
        outcome = "was carried out"
        if report["guarantee"]["private"]:
            often = "hit more often than the plan allows, and " if hits_above_limit(audit) else ""
            outcome = f"{often}did not contradict the plan by its bound on epsilon"
        told.append(f"an attack on the training units ({audit['name']}) {outcome}; its figures are not shown here")
    if unfinished:
        told.append(f"begun and without a result that can be read: {', '.join(unfinished)}")
    return "; ".join(told) + "." if told else "the training was not audited."


def _utility(report: dict[str, Any]) -> str:
    utility, other = report["utility"], report["companion"]
    text = (
        f"AUC {utility['auc']['value']:.3f}, accuracy {percent(utility['accuracy']['value'])} on {utility['n']:,} test "
        f"cases; always giving the most frequent answer scores {percent(utility['majority_accuracy'])}"
    )
    if other is None:
        return f"{text}; no run without privacy stands beside."
    network = "the same network" if other["same_network"] else "another network"
    if other["same_network"] and not other.get("same_settings"):
        network += ", trained with other settings,"
    return f"{text}; {network} without privacy reaches AUC {other['utility']['auc']['value']:.3f} (one run each)."


def _bias(utility: dict[str, Any]) -> str:
    worst = min(utility["recall"], key=lambda row: row["value"])
    text = f"By class: recall is lowest for {worst['class']}, {percent(worst['value'])}. "
    attributes = [entry for entry in utility.get("subgroups", ()) if len(entry["groups"]) > 1]
    if not attributes:
        return text + "By subgroup: not measured, so nothing is known."
    found = []
    for entry in attributes:
        low, *_, high = sorted(entry["groups"], key=lambda group: group["accuracy"]["value"])
        found.append(
            f"{entry['attribute_title']}: accuracy {percent(low['accuracy']['value'])} ({low['value']}) to "
            f"{percent(high['accuracy']['value'])} ({high['value']})"
        )
    return f"{text}By subgroup: {'; '.join(found)}."


def _bottom(report: dict[str, Any]) -> Items:
    data = report["data"]
    source = (data["card"] or {}).get("source")
    return [
        (
            "Data collection",
            f"{'Source as named on the data card: ' + show(source) + '. ' if source else ''}{UNKNOWN}whether the "
            "patients consented, or another legal ground holds.",
            "#data",
        ),
        (
            "Access control",
            "Ledger, settings, scores and weights were written for their owner alone. "
            f"{UNKNOWN}who may read them, and the images, today.",
            "#decision",
        ),
        ("Security", f"{UNKNOWN}how the machine, its backups and its network are protected.", "#decision"),
    ]
