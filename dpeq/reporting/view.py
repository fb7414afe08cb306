"""What the page of a report shows, in its order: sections, the words on top, and every table and figure below."""

from __future__ import annotations

from typing import Any

from dpeq.reporting import numbers
from dpeq.reporting.audit import refutation
from dpeq.reporting.audit_view import audit_view, bad_luck
from dpeq.reporting.privacy_view import best_guess, privacy_view
from dpeq.reporting.record_view import record_view
from dpeq.reporting.utility_view import utility_view

__all__ = ["sections", "view"]

_TITLES = {
    "guarantee": "The guarantee",
    "risk": "What an attacker can gain",
    "audits": "Attacks that were carried out",
    "limits": "What it rests on and does not cover",
    "performance": "How well the model works",
    "subgroups": "Groups of patients",
    "images": "Some test images",
    "symmetry": "Symmetry of the trained network",
    "mechanism": "How the privacy was obtained",
    "model": "The model",
    "data": "The data",
    "resources": "Time, memory, energy",
    "provenance": "Where this comes from",
    "checklist": "Checklists",
    "glossary": "Words used here",
    "decision": "Decision",
}


def view(report: dict[str, Any]) -> dict[str, Any]:
    """The values of ``report.html.j2`` beside the report itself."""
    return {
        "sections": sections(report),
        "summary": _summary(report),
        "refuted": refutation(report),
        "luck": bad_luck(len(report["audits"])),
        "best_guess": None if refutation(report) else best_guess(report),
        "attention": sum(entry["kind"] == "attention" for entry in report["assumptions"]),
        **privacy_view(report),
        **audit_view(report),
        **utility_view(report),
        **record_view(report),
    }


def sections(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sections by id in the order of the page: {"number", "title"}; what a report has nothing about is left out."""
    absent = {
        "audits": not (report["audits"] or report["unfinished_audits"]),
        "subgroups": not report["utility"].get("subgroups"),
        "images": not report["images"],
    }
    shown = [name for name in _TITLES if not absent.get(name)]
    attacks = {0: "Attacks that were begun", 1: "An attack that was carried out"}
    titles = _TITLES | {"audits": attacks.get(len(report["audits"]), _TITLES["audits"])}
    return {name: {"number": number, "title": titles[name]} for number, name in enumerate(shown, 1)}


def _summary(report: dict[str, Any]) -> str:
    """The first paragraph: the guarantee and the scores in three sentences."""
    guarantee, utility = report["guarantee"], report["utility"]
    scores = (
        f"On {utility['n']:,} test cases it reaches an AUC of {utility['auc']['value']:.3f} and answers "
        f"{numbers.percent(utility['accuracy']['value'])} correctly; always giving the most frequent answer scores "
        f"{numbers.percent(utility['majority_accuracy'])}."
    )
    if not guarantee["private"]:
        return f"This model gives no protection to the {guarantee['unit']}s it was trained on. {scores}"
    if refutation(report):
        return (
            f"An audit has refuted the limit that was claimed for the {guarantee['unit']}s this model was trained on: "
            f"it measured more than differential privacy with ε = {numbers.round_up(guarantee['epsilon'])} allows. "
            f"Do not release this model. {scores}"
        )
    seeded = (
        "Its random numbers came from a fixed seed, so the limit holds only against those who do not know the seed. "
        if report["provenance"]["rng"] == "seeded"
        else ""
    )
    return (
        f"This model protects every {guarantee['unit']} it was trained on with a proven limit on what it can reveal "
        f"(differential privacy with ε = {numbers.round_up(guarantee['epsilon'])}). {seeded}{scores}"
    )
