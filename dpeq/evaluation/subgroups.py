"""Scores of groups of patients, by sex, age band, site and device, where no group is small enough to point at somebody.

A group is shown if it has at least :data:`LEAST_CASES` cases of at least :data:`LEAST_PATIENTS` patients. The others,
and cases whose value is unknown, are withheld together. Since the scores of all cases stand beside, what is withheld
could be had by subtraction; so it, too, must be as large as a group that is shown. Where it is smaller, it is counted
to the largest group, whose name says so, and its size is not told: neither a small count nor the scores of a few people
can be worked out from one attribute (complementary suppression; Hundepool et al. 2012, Statistical Disclosure Control,
chapter 5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpeq.data.attributes import TITLES
from dpeq.data.images import ImageSet
from dpeq.evaluation.bootstrap import LEVEL, Bootstrapped, bootstrap, clusters_of
from dpeq.evaluation.cases import Cases
from dpeq.evaluation.inputs import checked
from dpeq.evaluation.ranking import Ranking

__all__ = ["LEAST_CASES", "LEAST_PATIENTS", "groups_of_cases", "subgroup_scores", "subgroups_of"]

LEAST_CASES = 10
LEAST_PATIENTS = 5
_WITH_OTHERS = "{} and others too few to show"
_COMPARED = (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy"), ("accuracy", "accuracy"))

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


def subgroups_of(
    probabilities: ArrayLike, images: ImageSet, cases: Cases, *, n_bootstrap: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """:func:`subgroup_scores` of a split and its cases; empty where the data has no attributes."""
    if images.groups is None or images.patients is None:
        return []
    groups, patients = groups_of_cases(images, cases)
    owners = None if cases.owners is None else cases.owners.numpy()
    return subgroup_scores(
        probabilities,
        cases.labels.numpy(),
        images.classes,
        groups,
        owners=owners,
        patients=patients,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def groups_of_cases(images: ImageSet, cases: Cases) -> tuple[dict[str, list[str]], Rows]:
    """The value of each case by attribute, "" unless all its images have it, and the patient of each case."""
    if images.groups is None or images.patients is None:
        raise ValueError(f"the {images.name} split has no groups.")
    of_images = cases.of_images.numpy()
    found = {}
    for name, values in images.groups.items():
        told: list[set[str]] = [set() for _ in range(len(cases))]
        for case, value in zip(of_images, values, strict=True):
            told[case].add(value)
        found[name] = [min(each) if len(each) == 1 else "" for each in told]
    patients = np.zeros(len(cases), dtype=np.int64)
    patients[of_images] = images.patients.numpy()  # a case is of one patient
    return found, patients


def subgroup_scores(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    owners: ArrayLike | None = None,
    patients: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Scores by group, JSON-ready: an entry for each attribute that any case has.

    Args:
        probabilities, labels, classes, owners: as in :func:`~dpeq.evaluation.metrics.evaluate_predictions`.
        groups: ``[N]`` values by attribute of :data:`dpeq.data.attributes.TITLES`, "" where unknown.
        patients: ``[N]``, whom each case shows; the owners by default, and without these every case is of its own.

    An entry has ``attribute``, ``attribute_title``, ``groups``, ``withheld`` (cases that are in none of these) and
    ``note``. A group has ``value``, ``n``, ``patients``, and intervals as those of all cases: ``auc``, ``accuracy``,
    ``balanced_accuracy``, ``sensitivity`` and ``specificity`` (of class 1, for K = 2), ``average_precision``; each is
    None where the group lacks a class that it needs, the means over classes where it lacks any class of the set.

    Raises :class:`DataError` as :func:`~dpeq.evaluation.metrics.evaluate_predictions`.
    """
    proba, truth, _ = checked(probabilities, labels, classes)
    n = len(truth)
    clusters = clusters_of(owners, n)
    persons = np.arange(n) if owners is None else np.asarray(owners)
    if patients is not None:
        persons = np.asarray(patients)
    out = []
    for attribute, title in TITLES.items():
        values = list(groups.get(attribute, ()))
        if not any(values):
            continue
        if len(values) != n:
            raise ValueError(f"{len(values)} values of {attribute} for {n} cases")
        shown, withheld, pure = _shown(np.array(values), persons)
        entries = []
        for value, rows in shown.items():
            of_group = None if clusters is None else clusters_of(clusters[rows], len(rows))
            scores = _scores(proba[rows], truth[rows], np.unique(truth), of_group, n_bootstrap, seed)
            entries.append({"value": value, "n": len(rows), "patients": len(np.unique(persons[rows])), **scores})
        out.append(
            {
                "attribute": attribute,
                "attribute_title": title,
                "groups": entries,
                "withheld": withheld,
                "note": _note(entries, attribute, all_shown=pure),
            }
        )
    return out


def _shown(values: NDArray[np.str_], persons: NDArray[Any]) -> tuple[dict[str, Rows], int, bool]:
    """Cases of each group that is shown, by its name; how many cases are withheld; whether none are, nor merged."""
    rows = {str(value): np.flatnonzero(values == value) for value in sorted(set(values.tolist()) - {""}, key=_natural)}
    shown = {value: cases for value, cases in rows.items() if _enough(cases, persons)}
    rest = np.setdiff1d(np.arange(len(values)), np.concatenate([np.empty(0, np.int64), *shown.values()]))
    if not len(rest) or _enough(rest, persons):
        return shown, len(rest), not len(rest)
    if len(shown) < 2:  # nothing to count them to but nearly all cases
        return {}, len(values), False
    largest = max(shown, key=lambda value: len(shown[value]))
    more = np.union1d(shown[largest], rest)
    named = {_WITH_OTHERS.format(v) if v == largest else v: more if v == largest else c for v, c in shown.items()}
    return named, 0, False


def _enough(rows: Rows, persons: NDArray[Any]) -> bool:
    return len(rows) >= LEAST_CASES and len(np.unique(persons[rows])) >= LEAST_PATIENTS


def _natural(value: str) -> list[tuple[int, str]]:
    """Numbers in their order: "site 2" before "site 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", value)]


def _scores(
    proba: Array, truth: Rows, all_classes: Rows, clusters: Rows | None, n_bootstrap: int, seed: int
) -> dict[str, dict[str, float] | None]:
    k = proba.shape[1]
    present = np.unique(truth).tolist()
    whole = len(present) == len(all_classes)
    correct = (proba.argmax(axis=1) == truth).astype(np.float64)
    member = np.stack([truth == c for c in present]).astype(np.float64)
    scored = ([1] if k == 2 else present) if whole else []
    rankings = [Ranking(proba[:, c], truth == c) for c in scored]

    def scores(weights: Array) -> dict[str, Array]:
        recalls = (weights @ (member * correct).T) / (weights @ member.T)
        found = {"accuracy": weights @ correct / weights.sum(axis=1)}
        found |= {f"recall {c}": recalls[:, i] for i, c in enumerate(present)}
        if rankings:
            areas = np.stack([ranking.areas(weights) for ranking in rankings])  # [classes, 2, B]
            found["auc"], found["average_precision"] = areas.mean(axis=0)
            found["balanced_accuracy"] = recalls.mean(axis=1)
        return found

    found = bootstrap(scores, truth, clusters, n_bootstrap, seed)
    of_two = ("recall 1", "recall 0") if k == 2 else ("", "")
    return {
        "auc": _get(found, "auc"),
        "accuracy": _get(found, "accuracy"),
        "balanced_accuracy": _get(found, "balanced_accuracy"),
        "sensitivity": _get(found, of_two[0]),
        "specificity": _get(found, of_two[1]),
        "average_precision": _get(found, "average_precision"),
    }


def _get(found: Bootstrapped, name: str) -> dict[str, float] | None:
    return found.get(name) if name in found.values else None


def _note(entries: list[dict[str, Any]], attribute: str, *, all_shown: bool) -> str:
    """A comparison of the groups that are furthest apart, and what became of the others."""
    rest = f"cases of unknown {attribute} and groups of fewer than {LEAST_CASES} cases or {LEAST_PATIENTS} patients"
    apart = "" if all_shown else f" Not shown by themselves are {rest}."
    if len(entries) < 2:
        return f"Fewer than two groups are large enough to be shown, so there is nothing to compare.{apart}"
    key, word = next((key, word) for key, word in _COMPARED if sum(entry[key] is not None for entry in entries) > 1)
    scored = [entry for entry in entries if entry[key] is not None]
    low, high = (end(scored, key=lambda entry: entry[key]["value"]) for end in (min, max))
    a, b = high[key], low[key]
    if a["value"] == b["value"]:
        return f"All groups have the same {word}, {a['value']:.3f}.{apart}"
    # A score of 1 (or 0) comes out of every resample: that its interval is a point does not make it sure.
    points = [entry["value"] for entry, score in ((high, a), (low, b)) if score["low"] == score["high"]]
    if points:
        verdict = f"the interval of {' and that of '.join(points)} is a point, so nothing says whether they differ"
    else:
        overlap = "overlap" if b["high"] >= a["low"] else "do not overlap"
        verdict = f"their {LEVEL:.0%} intervals {overlap}"
    return (
        f"The largest difference in {word} is between {high['value']} ({a['value']:.3f}) and {low['value']} "
        f"({b['value']:.3f}); {verdict}.{apart}"
    )
