"""The figures about performance: scores, curves over thresholds, calibration, confusion, groups of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.patches import Rectangle

from dpeq.reporting.figure import (
    BLUE,
    CURVES,
    FAINT,
    GREY,
    INK,
    MARKERS,
    VERMILLION,
    finish,
    fit,
    new_figure,
    pointed,
    style,
)

__all__ = [
    "Series",
    "calibration_plot",
    "confusion_plot",
    "precision_recall_plot",
    "roc_plot",
    "score_plot",
    "subgroup_plot",
]

Interval = Mapping[str, Any]
_FEW = 10  # cases in a bin of the calibration; fewer, in a set that has no more, are drawn hollow
_LABEL = 16  # characters of a class name that fit beside an axis


@dataclass(frozen=True)
class Series:
    """One row of dots in :func:`score_plot`: ``points`` maps a score's name to {"value", "low", "high"}."""

    label: str
    points: Mapping[str, Interval]
    role: Literal["model", "companion", "reference"] = "model"


_ROLES = {"model": ("o", BLUE, "-"), "companion": ("s", VERMILLION, "--"), "reference": ("D", GREY, "-")}


def score_plot(series: Sequence[Series]) -> str:
    """Scores as dots with their intervals: one row per score, one marker per series."""
    names = list(dict.fromkeys(name for one in series for name in one.points))
    with style():
        figure, axes = new_figure(0.95 + 0.24 * len(names) * len(series))
        for i, one in enumerate(series):
            marker, colour, line = _ROLES[one.role]
            face = colour if one.role == "model" else "white"
            for j, name in enumerate(names):
                if name not in one.points:
                    continue
                point = one.points[name]
                y = j + (i - (len(series) - 1) / 2) * 0.24
                if point["high"] > point["low"]:
                    axes.plot(
                        [point["low"], point["high"]],
                        [y, y],
                        color=colour,
                        linestyle=line,
                        linewidth=1.8,
                        solid_capstyle="butt",
                    )
                axes.plot(point["value"], y, marker, markersize=6.5, color=colour, markerfacecolor=face)
            axes.plot([], [], marker, color=colour, markerfacecolor=face, label=fit(one.label, 40))
        axes.set_yticks(range(len(names)), [fit(name, 24) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        for j in range(1, len(names)):
            axes.axhline(j - 0.5, color=FAINT, linewidth=0.8)
        lowest = min(point["low"] for one in series for point in one.points.values())
        axes.set_xlim(max(0.0, min(0.5, lowest - 0.03)), 1.0)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=len(series), handletextpad=0.3, columnspacing=1.2)
        desc = "; ".join(
            f"{one.label}: " + ", ".join(f"{name} {pointed(point)}" for name, point in one.points.items())
            for one in series
        )
        return finish(figure, "scores", "Test scores with 95 % intervals", desc + ".")


def confusion_plot(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Confusion matrix: rows are the truth, shade is the share of the row, the number is the count."""
    k = len(classes)
    share = [[count / max(sum(row), 1) for count in row] for row in matrix]
    with style():
        figure, axes = new_figure(2.9 if k <= 4 else 3.6)
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                shade, ink = _shade(share[i][j])
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=shade, edgecolor="white", linewidth=2))
                if k <= 10:
                    size = 11 if k < 5 else 8
                    axes.text(j, i, f"{count:,}", ha="center", va="center", color=ink, fontsize=size)
        axes.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5))
        names = [fit(name, _LABEL) for name in classes]
        axes.set_xticks(range(k), names, rotation=0 if k <= 3 else 40, ha="center" if k <= 3 else "right")
        axes.set_yticks(range(k), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        right = sum(matrix[i][i] for i in range(k))
        desc = (
            f"{right} of {sum(map(sum, matrix))} test cases lie on the diagonal, that is, are answered correctly. "
            "The table beside the figure lists every cell."
        )
        return finish(figure, "confusion", "Confusion matrix of the test set", desc)


def roc_plot(curves: Sequence[Mapping[str, Sequence[float]]], labels: Sequence[str], auc: str) -> str:
    """ROC curves, one per label, and the diagonal of guessing; ``auc`` is the sentence end that names the area."""
    with style():
        figure, axes = new_figure(_height(curves))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle=(0, (2, 2)), label="guessing")
        for i, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            axes.plot(curve["fpr"], curve["tpr"], label=fit(label, _LABEL), **_line(i))
        axes.set(xlim=(-0.01, 1.0), ylim=(0, 1.01), xlabel="false alarms (1 - specificity)", ylabel="sensitivity")
        axes.legend(loc="lower right", ncols=1 if len(curves) <= 6 else 2)
        desc = f"Sensitivity against the rate of false alarms for {len(curves)} curve(s); {auc}."
        return finish(figure, "roc", "ROC curve of the test set", desc)


def precision_recall_plot(
    curves: Sequence[Mapping[str, Sequence[float]]], labels: Sequence[str], prevalence: float, average: str
) -> str:
    """Precision over recall, one line per label; guessing has the precision ``prevalence`` at every recall."""
    with style():
        figure, axes = new_figure(_height(curves))
        axes.axhline(prevalence, color=GREY, linewidth=1.0, linestyle=(0, (2, 2)), label="guessing")
        for i, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            axes.plot(curve["recall"], curve["precision"], drawstyle="steps-post", label=fit(label, _LABEL), **_line(i))
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.02), xlabel="recall (sensitivity)", ylabel="precision")
        axes.legend(loc="lower left", ncols=1 if len(curves) <= 6 else 2)
        desc = (
            f"Precision against recall for {len(curves)} curve(s); {average}. Guessing has precision {prevalence:.3f} "
            "at every recall."
        )
        return finish(figure, "precision-recall", "Precision-recall curve of the test set", desc)


def calibration_plot(bins: Sequence[Mapping[str, Any]], of: str) -> str:
    """Observed share over the mean prediction of each bin, with intervals; below, how many cases each bin holds."""
    with style():
        figure, axes = new_figure(3.4)
        figure.clear()
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for panel in (axes, counts):
            panel.set_facecolor("none")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle=(0, (2, 2)), label="as predicted")
        for row in bins:
            if row["observed"]["high"] > row["observed"]["low"]:
                axes.plot([row["predicted"]] * 2, [row["observed"]["low"], row["observed"]["high"]], color=BLUE, lw=1.4)
        for row in bins:
            face = BLUE if row["n"] >= _FEW else "white"
            axes.plot(row["predicted"], row["observed"]["value"], "o", color=BLUE, ms=5.5, markerfacecolor=face)
        axes.plot([], [], "o", color=BLUE, label="observed")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed share")
        axes.legend(loc="upper left")
        for row in bins:
            counts.bar(
                row["low"],
                row["n"],
                width=row["high"] - row["low"],
                align="edge",
                facecolor="#DCE9F2",
                edgecolor=BLUE,
                linewidth=0.8,
                hatch="////",
            )
        counts.set(ylabel="cases", xlabel=fit(of, 44))
        desc = "; ".join(
            f"predicted {row['predicted']:.2f}, observed {pointed(row['observed'])} in {row['n']} cases" for row in bins
        )
        return finish(figure, "calibration", "Calibration: observed share over predicted probability", desc + ".")


def subgroup_plot(title: str, name: str, groups: Sequence[Mapping[str, Any]], overall: Mapping[str, Interval]) -> str:
    """One row per group, its accuracy and AUC with intervals; the marks of all cases together are vertical lines.

    ``overall`` maps "accuracy" and "auc" to the scores of the whole test set.
    """
    scores = (("accuracy", "accuracy", "o", BLUE, "-"), ("auc", "AUC", "s", VERMILLION, "--"))
    with style():
        figure, axes = new_figure(1.05 + 0.44 * len(groups))
        lowest = min(overall[key]["value"] for key, *_ in scores)
        for i, (key, label, marker, colour, line) in enumerate(scores):
            axes.axvline(overall[key]["value"], color=colour, linestyle=line, linewidth=1.0, alpha=0.75)
            for j, group in enumerate(groups):
                point = group.get(key)
                if point is None:
                    continue
                y = j + (i - 0.5) * 0.28
                lowest = min(lowest, point["low"])
                axes.plot([point["low"], point["high"]], [y, y], color=colour, linestyle=line, linewidth=1.6)
                axes.plot(point["value"], y, marker, ms=6, color=colour, markerfacecolor=colour if i == 0 else "white")
            axes.plot([], [], marker, color=colour, markerfacecolor=colour if i == 0 else "white", label=label)
        axes.set_yticks(
            range(len(groups)), [f"{fit(str(group['value']), _LABEL)}\nn = {group['n']:,}" for group in groups]
        )
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        for j in range(1, len(groups)):
            axes.axhline(j - 0.5, color=FAINT, linewidth=0.8)
        axes.set_xlim(max(0.0, min(0.5, lowest - 0.03)), 1.01)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, handletextpad=0.3, columnspacing=1.4)
        desc = "; ".join(
            f"{group['value']}: "
            + ", ".join(f"{label} {pointed(group[key])}" for key, label, *_ in scores if group.get(key))
            for group in groups
        )
        whole = ", ".join(f"{label} {overall[key]['value']:.3f}" for key, label, *_ in scores)
        return finish(figure, name, f"Test scores by {title}", f"{desc}. Vertical lines are all cases: {whole}.")


def _height(curves: Sequence[object]) -> float:
    return 2.9 if len(curves) <= 5 else 3.4


def _line(i: int) -> dict[str, Any]:
    """Colour, dashes and, from the sixth curve on, a marker: no two of 30 curves differ by colour alone."""
    colour, dashes = CURVES[i % len(CURVES)]
    if i < len(CURVES):
        return {"color": colour, "linestyle": dashes, "linewidth": 2.0}
    marker = MARKERS[(i // len(CURVES) - 1) % len(MARKERS)]
    return {
        "color": colour,
        "linestyle": dashes,
        "linewidth": 1.1,
        "marker": marker,
        "markersize": 3.5,
        "markevery": 0.2,
    }


def _shade(share: float) -> tuple[tuple[float, float, float], str]:
    """A blue that deepens with ``share`` in 0..1, and the ink that reads on it (WCAG relative luminance)."""
    light, dark = (0.925, 0.945, 0.965), (0.031, 0.318, 0.612)
    red, green, blue = (a + share * (b - a) for a, b in zip(light, dark, strict=True))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (red, green, blue), "white" if luminance < 0.25 else INK
