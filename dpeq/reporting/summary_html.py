"""The page of several runs, and the two files that a summary is written as."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from dpeq.reporting.files import as_text, check_schema, remove_pdf, write_whole
from dpeq.reporting.html import page
from dpeq.reporting.numbers import duration, round_up, show
from dpeq.reporting.summary import PRICED
from dpeq.reporting.summary_plots import utility_plot
from dpeq.reporting.summary_rows import SCORES, number
from dpeq.reporting.summary_words import TITLES, signed

__all__ = ["render_summary", "write_summary"]

_REFERENCES = {"auc": "guessing", "accuracy": "most frequent class"}


def write_summary(summary: dict[str, Any], out_dir: Path) -> tuple[Path, Path]:
    """Writes ``summary.html`` and ``summary.json`` into ``out_dir``, each whole or not at all; returns their paths.

    The page comes last: where there is one, all of the summary is there. A PDF of the page before is removed.
    """
    check_schema(summary, "summary")
    text = render_summary(summary)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    html_path, json_path = out_dir / "summary.html", out_dir / "summary.json"
    remove_pdf(html_path)
    write_whole(json_path, as_text(summary).encode())
    write_whole(html_path, text.encode())
    return html_path, json_path


def render_summary(summary: Mapping[str, Any]) -> str:
    """The page (see ``privacy_reports/summary.html.j2``); the same summary gives the same bytes."""
    cells, rows = summary["cells"], summary["runs"]
    curves = [
        {
            "score": TITLES[score],
            "id": score.replace("_", "-"),
            "figure": Markup(utility_plot(cells, rows, score, (_REFERENCES[score], summary["majority"][score]))),
            "tables": _curve_tables(summary, score),
            "reference": _REFERENCES[score],
            "level": summary["majority"][score],
        }
        for score in PRICED
    ]
    return page(
        "summary.html.j2",
        s=summary,
        curves=curves,
        score_columns=["Network", "ε#", "Runs#", *(f"{_title(score)}#" for score in SCORES)],
        score_rows=[
            [c["model"], _epsilon(c["epsilon"]), c["n"], *(_cell(c["scores"][score]) for score in SCORES)]
            for c in cells
        ],
        majority_row=[_majority(summary["majority"], score) for score in SCORES],
        run_rows=[_run_row(row) for row in rows],
        refuted=[(row["run"], row["refuted"]) for row in rows if row["refuted"] is not None],
        network_rows=[
            [n["model"], n["name"], n["group"] or "none", show(n["parameters"])] for n in summary["networks"]
        ],
    )


def _title(score: str) -> str:
    return TITLES[score][0].upper() + TITLES[score][1:]


def _epsilon(value: float | str) -> str:
    return _epsilon_of(number(value))


def _epsilon_of(epsilon: float) -> str:
    return "∞" if math.isinf(epsilon) else f"{epsilon:g}"


def _cell(mean: Mapping[str, Any]) -> Any:
    """As the table macro takes it: a value with its interval, or a number alone."""
    if mean["low"] is None:
        return f"{mean['mean']:.3f}"
    return {"value": mean["mean"], "low": mean["low"], "high": mean["high"]}


def _majority(majority: Mapping[str, float], score: str) -> str:
    return f"{majority[score]:.3f}" if score in majority else "–"


def _curve_tables(summary: Mapping[str, Any], score: str) -> list[dict[str, Any]]:
    """Networks by epsilons: means, what privacy costs, and how many runs where these differ."""
    epsilons = sorted({number(cell["epsilon"]) for cell in summary["cells"]})
    models = list(dict.fromkeys(cell["model"] for cell in summary["cells"]))
    cells = {(cell["model"], number(cell["epsilon"])): cell for cell in summary["cells"]}
    costs = {(p["model"], p["epsilon"]): p["cost"] for p in summary["prices"] if p["score"] == score}

    def table(
        caption: str, note: str, columns: Sequence[float], content: Callable[[str, float], Any]
    ) -> dict[str, Any]:
        rows = [[model, *(content(model, epsilon) for epsilon in columns)] for model in models]
        return {
            "caption": caption,
            "note": note,
            "columns": ["Network", *(f"ε = {_epsilon_of(epsilon)}#" for epsilon in columns)],
            "rows": rows,
        }

    def mean(model: str, epsilon: float) -> Any:
        cell = cells.get((model, epsilon))
        return None if cell is None else _cell(cell["scores"][score])

    counts = sorted({cell["n"] for cell in summary["cells"]})
    each = f"{counts[0]} run{'s' * (counts[0] > 1)} each." if len(counts) == 1 else "Numbers of runs are below."
    tables = [table(f"Mean {TITLES[score]}", each, epsilons, mean)]
    if any(cost is not None for cost in costs.values()):
        note = "Mean of the same network without privacy, minus this mean; more than 0 is a loss."
        finite = [epsilon for epsilon in epsilons if math.isfinite(epsilon)]
        tables.append(
            table(f"What privacy costs in {TITLES[score]}", note, finite, lambda m, e: _cost(costs.get((m, e))))
        )
    if len(counts) > 1:
        tables.append(table("Runs", "", epsilons, lambda m, e: cells[m, e]["n"] if (m, e) in cells else None))
    return tables


def _cost(cost: Mapping[str, Any] | None) -> Any:
    if cost is None:
        return None
    if cost["low"] is None:
        return signed(cost["mean"])
    ends = (signed(cost["low"]), signed(cost["high"]))
    return Markup('{} <span class="range">({} to {})</span>').format(signed(cost["mean"]), *ends)


def _run_row(row: Mapping[str, Any]) -> Sequence[Any]:
    """A run that is unfinished or failed has no scores, but has spent."""
    name = escape(row["run"])
    if row["report"] is not None:
        name = Markup('<a href="{}">{}</a>').format(row["report"], row["run"])
    if row["refuted"] is not None:
        name = Markup("{} <strong>REFUTED</strong>").format(name)
    finished = row["state"] == "finished"
    steps = (
        show(row["steps"]) if row["steps"] == row["steps_planned"] else f"{row['steps']:,} of {row['steps_planned']:,}"
    )
    return [
        name,
        _epsilon(row["epsilon"]),
        "refuted" if row["refuted"] is not None else "∞" if row["spent"] == "inf" else round_up(row["spent"], 3),
        steps,
        "seeded" if row["seeded"] else "system",
        *(f"{row['scores'][score]['value']:.3f}" if finished else "–" for score in PRICED),
        duration(row["seconds"]) if finished else row["state"],
    ]
