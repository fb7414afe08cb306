"""Scores of groups of patients, by sex, age band, site and device, where no group is small enough to point at somebody.

A group is shown if it has at least :data:`LEAST_CASES` cases of at least :data:`LEAST_PATIENTS` patients. The others,
and cases whose value is unknown, are withheld together. Since the scores of all cases stand beside, what is withheld
could be had by subtraction; so it, too, must be as large as a group that is shown. Where it is smaller, it is counted
to the largest group, whose name says so, and its size is not told: neither a small count nor the scores of a few people
can be worked out from one attribute (complementary suppression; Hundepool et al. 2012, Statistical Disclosure Control,
chapter 5). Scores that speak of single classes ask for :data:`LEAST_PATIENTS` patients of every class, by the same
rule, and the same scores are left out whether a group has no patient of a class or a few.

Two attributes tell the few cases apart in which two of their groups differ. The later attribute, in the order of
:data:`dpeq.data.attributes.TITLES`, is then withheld. Groups are compared one with one: what unions of groups, or three
attributes, come to together is not looked for.
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
_REPEATS = "Groups by {} are not shown: together with those above they would tell a few cases apart."
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
    but the accuracy is None where the group, or what is left of all cases without the groups that have these scores,
    has fewer than :data:`LEAST_PATIENTS` patients of a class of the set.

    Raises :class:`DataError` as :func:`~dpeq.evaluation.metrics.evaluate_predictions`.
    """
    proba, truth, _ = checked(probabilities, labels, classes)
    n = len(truth)
    clusters = clusters_of(owners, n)
    persons = np.arange(n) if owners is None else np.asarray(owners)
    if patients is not None:
        persons = np.asarray(patients)
    of_class = [np.flatnonzero(truth == c) for c in np.unique(truth)]
    out = []
    told: list[Rows] = []  # whose accuracy, and whose class scores, the attributes before this one tell
    told_by_class: list[Rows] = []
    for attribute, title in TITLES.items():
        values = list(groups.get(attribute, ()))
        if not any(values):
            continue
        if len(values) != n:
            raise ValueError(f"{len(values)} values of {attribute} for {n} cases")
        shown, withheld, pure = _shown(np.array(values), persons)
        parts = _parts(shown, n)
        repeats = any(_few(np.setxor1d(one, other), persons) for one in parts for other in told)
        if repeats:
            shown, withheld = {}, n
        else:
            told += parts
        by_class = _scored_by_class(shown, of_class, persons, n)
        parts = _parts(by_class, n)
        if any(_few_of_class(np.setxor1d(a, b), of_class, persons) for a in parts for b in told_by_class):
            by_class = {}
        else:
            told_by_class += parts
        entries = []
        for value, rows in shown.items():
            of_group = None if clusters is None else clusters_of(clusters[rows], len(rows))
            scores = _scores(proba[rows], truth[rows], value in by_class, of_group, n_bootstrap, seed)
            entries.append({"value": value, "n": len(rows), "patients": len(np.unique(persons[rows])), **scores})
        out.append(
            {
                "attribute": attribute,
                "attribute_title": title,
                "groups": entries,
                "withheld": withheld,
                "note": _REPEATS.format(attribute) if repeats else _note(entries, attribute, all_shown=pure),
            }
        )
    return out


def _shown(values: NDArray[np.str_], persons: NDArray[Any]) -> tuple[dict[str, Rows], int, bool]:
    """Cases of each group that is shown, by its name; how many cases are withheld; whether none are, nor merged."""
    rows = {str(value): np.flatnonzero(values == value) for value in sorted(set(values.tolist()) - {""}, key=_natural)}
    shown = {value: cases for value, cases in rows.items() if _enough(cases, persons)}
    rest = _rest(shown, len(values))
    if not len(rest) or _enough(rest, persons):
        return shown, len(rest), not len(rest)
    if len(shown) < 2:  # nothing to count them to but nearly all cases
        return {}, len(values), False
    largest = max(shown, key=lambda value: len(shown[value]))
    more = np.union1d(shown[largest], rest)
    named = {_WITH_OTHERS.format(v) if v == largest else v: more if v == largest else c for v, c in shown.items()}
    return named, 0, False


def _scored_by_class(
    shown: Mapping[str, Rows], of_class: Sequence[Rows], persons: NDArray[Any], n: int
) -> dict[str, Rows]:
    """The groups whose class scores may be shown; the poorest are left out until the rest of all cases is no poorer."""

    def least(rows: Rows) -> int:
        return min(len(np.unique(persons[np.intersect1d(rows, cases)])) for cases in of_class)

    kept = {value: rows for value, rows in shown.items() if least(rows) >= LEAST_PATIENTS}
    while kept:
        rest = _rest(kept, n)
        if not len(rest) or least(rest) >= LEAST_PATIENTS:
            break
        del kept[min(kept, key=lambda value: least(kept[value]))]
    return kept


def _few_of_class(rows: Rows, of_class: Sequence[Rows], persons: NDArray[Any]) -> bool:
    """Whether cases that two groups differ in have few patients of a class; none are as few as some."""
    return len(rows) > 0 and any(
        len(np.unique(persons[np.intersect1d(rows, cases)])) < LEAST_PATIENTS for cases in of_class
    )


def _parts(groups: Mapping[str, Rows], n: int) -> list[Rows]:
    """The groups and the rest of all cases, whose scores follow from theirs."""
    rest = _rest(groups, n)
    return [*groups.values(), rest] if len(rest) else list(groups.values())


def _rest(groups: Mapping[str, Rows], n: int) -> Rows:
    return np.setdiff1d(np.arange(n), np.concatenate([np.empty(0, np.int64), *groups.values()]))


def _few(rows: Rows, persons: NDArray[Any]) -> bool:
    return len(rows) > 0 and not _enough(rows, persons)


def _enough(rows: Rows, persons: NDArray[Any]) -> bool:
    return len(rows) >= LEAST_CASES and len(np.unique(persons[rows])) >= LEAST_PATIENTS


def _natural(value: str) -> list[tuple[int, str]]:
    """Numbers in their order: "site 2" before "site 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", value)]


def _scores(
    proba: Array, truth: Rows, by_class: bool, clusters: Rows | None, n_bootstrap: int, seed: int
) -> dict[str, dict[str, float] | None]:
    k = proba.shape[1]
    present = np.unique(truth).tolist()
    correct = (proba.argmax(axis=1) == truth).astype(np.float64)
    member = np.stack([truth == c for c in present]).astype(np.float64)
    scored = [1] if k == 2 else present
    rankings = [Ranking(proba[:, c], truth == c) for c in scored] if by_class else []

    def scores(weights: Array) -> dict[str, Array]:
        found = {"accuracy": weights @ correct / weights.sum(axis=1)}
        if by_class:
            recalls = (weights @ (member * correct).T) / (weights @ member.T)
            found |= {f"recall {c}": recalls[:, i] for i, c in enumerate(present)}
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
