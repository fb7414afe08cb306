"""Several runs as data: every run, means over repetitions, what privacy costs, and what all of it spent together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpeq import __version__
from dpeq.privacy import accounting
from dpeq.privacy.composition import Part, Total, compose
from dpeq.reporting.files import check_schema
from dpeq.reporting.repetitions import LEVEL, difference_of_means, mean_of
from dpeq.reporting.summary_rows import SCORES, number, read_rows
from dpeq.reporting.summary_words import price_sentence, privacy_sentences, scope_sentences

__all__ = ["SCHEMA_VERSION", "build_summary", "compose_rows", "derived", "privacy_of"]

SCHEMA_VERSION = "1.1"
PRICED = ("auc", "accuracy")


def build_summary(runs: Sequence[Path], *, below: Path | None = None) -> dict[str, Any]:
    """The summary of the runs in ``runs``, finished or not; it satisfies ``privacy_reports/summary.schema.json``.

    The same files give the same summary. ``below`` is the folder that the page will lie in: reports of runs below it
    are linked. Raises as :func:`dpeq.reporting.summary_rows.read_rows` and
    :func:`dpeq.privacy.composition.compose`.
    """
    paths = [Path(run) for run in runs]
    with accounting.session("pld", "rdp"):
        rows, data = read_rows(paths, below=below)
        total = compose_rows(rows)
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "data": data,
        "runs": rows,
        **derived(rows),
        "privacy": privacy_of(rows, total),
        "provenance": {"dpeq": __version__},
    }
    summary = json.loads(json.dumps(summary, allow_nan=False))  # as it will be read back
    check_schema(summary, "summary")
    return summary


def derived(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that follows from the rows alone: networks, cells, prices, the majority class, sentences."""
    finished = [row for row in rows if row["state"] == "finished"]
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    networks: dict[str, dict[str, Any]] = {}
    for row in finished:
        groups.setdefault((row["model"], number(row["epsilon"])), []).append(row)
        networks.setdefault(row["model"], {"model": row["model"], **row["network"]})
    cells = [
        {
            "model": model,
            "epsilon": members[0]["epsilon"],
            "n": len(members),
            "runs": [row["run"] for row in members],
            "scores": {score: mean_of(_values(members, score)) for score in SCORES},
        }
        for (model, _), members in groups.items()
    ]
    prices = [
        _price(model, epsilon, members, groups.get((model, math.inf)), score)
        for score in PRICED
        for (model, epsilon), members in groups.items()
        if not math.isinf(epsilon)
    ]
    return {
        "level": LEVEL,
        "networks": list(networks.values()),
        "cells": cells,
        "prices": prices,
        "majority": finished[0]["majority"],
        "conclusions": _conclusions(prices),
        "scope": scope_sentences(rows),
    }


def privacy_of(rows: Sequence[Mapping[str, Any]], total: Total | None) -> dict[str, Any]:
    """The composition ``total`` of all private rows (None without any), and what must be said with it."""
    private = [row for row in rows if row["private"]]
    privacy: dict[str, Any] = {
        "unit": rows[0]["unit"],
        "private_runs": len(private),
        "unfinished_private_runs": sum(row["state"] == "unfinished" for row in private),
        "open_runs": len(rows) - len(private),
        "seeded_runs": sum(row["seeded"] for row in private),
        "audit_trainings": sum(row["audit_trainings"] for row in private),
        "refuted_runs": [row["run"] for row in private if row["refuted"] is not None],
        "deltas": sorted({row["delta"] for row in private}),
        "epsilon": None if total is None else total.epsilon,
        "delta": None if total is None else total.delta,
        "accountant": None if total is None else total.accountant,
        "accountant_note": None if total is None else total.note,
        "rdp": None if total is None else total.rdp,
    }
    return {**privacy, "sentences": privacy_sentences(privacy)}


def compose_rows(rows: Sequence[Mapping[str, Any]]) -> Total | None:
    """The composition of all private rows from the constants that they state, or None.

    Unfinished runs count with their whole plan: the steps they took are no constant that was fixed in advance, for
    results may have decided when a run was stopped. A run that ends early releases no more than one that goes on. Each
    training for an audit counts as one more run of its plan.
    """
    private = [row for row in rows if row["private"]]
    if not private:
        return None
    parts = [
        Part(row["sample_rate"], row["noise_multiplier"], row["steps_planned"] * (1 + row["audit_trainings"]))
        for row in private
    ]
    return compose(parts, min(row["delta"] for row in private))


def _values(rows: Sequence[Mapping[str, Any]], score: str) -> list[float]:
    return [row["scores"][score]["value"] for row in rows]


def _price(
    model: str,
    epsilon: float,
    ours: Sequence[Mapping[str, Any]],
    open_: Sequence[Mapping[str, Any]] | None,
    score: str,
) -> dict[str, Any]:
    price: dict[str, Any] = {
        "model": model,
        "epsilon": epsilon,
        "score": score,
        "ours": {"n": len(ours), **mean_of(_values(ours, score))},
        "open": None,
        "cost": None,
    }
    if open_ is not None:
        price["open"] = {"n": len(open_), **mean_of(_values(open_, score))}
        price["cost"] = difference_of_means(_values(open_, score), _values(ours, score))
    return {**price, "sentence": price_sentence(price)}


def _conclusions(prices: Sequence[Mapping[str, Any]]) -> list[str]:
    """For every network, what its strongest privacy costs in AUC."""
    strongest: dict[str, Mapping[str, Any]] = {}
    for price in prices:
        if price["score"] != "auc":
            continue
        best = strongest.get(price["model"])
        if best is None or price["epsilon"] < best["epsilon"]:
            strongest[price["model"]] = price
    return [price["sentence"] for price in strongest.values()]
