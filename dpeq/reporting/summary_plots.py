"""The privacy-utility curve: a score against epsilon, one line per network, infinity behind a break of the axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from dpeq.reporting.figure import CURVES, GREY, INK, MARKERS, finish, fit, new_figure, style
from dpeq.reporting.summary_rows import number
from dpeq.reporting.summary_words import TITLES, interval_words

__all__ = ["utility_plot"]

_LABEL = 34  # letters of a network's label that fit into the legend


def utility_plot(
    cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], score: str, reference: tuple[str, float]
) -> str:
    """Mean and interval of ``score`` at every epsilon, and every run as a small dot.

    ``reference`` is the name and the score of a model that has learnt nothing, drawn as a level line.
    """
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    place = _places([number(cell["epsilon"]) for cell in cells])
    title = f"{TITLES[score][0].upper()}{TITLES[score][1:]} against epsilon"
    with style():
        figure, axes = new_figure(2.9 + 0.19 * len(models))
        name, level = reference
        axes.axhline(level, color=GREY, linestyle=(0, (1, 2)), linewidth=1.3)
        for i, model in enumerate(models):
            shift = (i - (len(models) - 1) / 2) * 0.035
            own = sorted((c for c in cells if c["model"] == model), key=lambda c: number(c["epsilon"]))
            _draw(axes, own, rows, score, place, shift, i)
        values = [v for cell in cells for v in _extent(cell["scores"][score])] + [level]
        values += [row["scores"][score]["value"] for row in rows if row["scores"] is not None]
        room = max(0.06 * (max(values) - min(values)), 0.01)
        low, high = min(values) - room, min(max(values) + room, 1.0 + room / 2)
        axes.set_ylim(low, high)
        axes.annotate(
            name,
            (0.01, level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            va="bottom",
            color=INK,
            fontsize=8.5,
        )
        _axis(axes, place)
        axes.set_ylabel(f"test {TITLES[score]}")
        figure.legend(loc="outside lower center", ncols=1 if len(models) > 2 else len(models), handlelength=3.4)
        return finish(figure, f"curve-{score.replace('_', '-')}", title, _description(cells, models, score, reference))


def _places(epsilons: Sequence[float]) -> dict[float, float]:
    """Positions on the axis: the logarithm, and infinity at a distance behind the largest."""
    finite = sorted({epsilon for epsilon in epsilons if math.isfinite(epsilon)})
    place = {epsilon: math.log10(epsilon) for epsilon in finite}
    if math.inf in epsilons:
        span = place[finite[-1]] - place[finite[0]] if finite else 0.0
        place[math.inf] = (place[finite[-1]] if finite else 0.0) + max(0.3 * span, 0.3)
    return place


def _draw(
    axes: Axes,
    cells: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    score: str,
    place: Mapping[float, float],
    shift: float,
    index: int,
) -> None:
    colour, line = CURVES[index % len(CURVES)]
    marker = MARKERS[(index + index // len(CURVES)) % len(MARKERS)]
    span = max(place.values()) - min(place.values()) or 1.0
    xs = [place[number(cell["epsilon"])] + shift * span for cell in cells]
    for x, cell in zip(xs, cells, strict=True):
        low, high = _extent(cell["scores"][score])
        if high > low:
            axes.plot([x, x], [low, high], "_-", color=colour, linewidth=1.5, markersize=7)
        dots = [row["scores"][score]["value"] for row in rows if row["run"] in cell["runs"]]
        if len(dots) > 1:
            axes.plot([x + 0.018 * span] * len(dots), dots, ".", color=colour, markersize=3.5, alpha=0.7)
    means = [cell["scores"][score]["mean"] for cell in cells]
    finite = [i for i, cell in enumerate(cells) if number(cell["epsilon"]) < math.inf]
    axes.plot([xs[i] for i in finite], [means[i] for i in finite], color=colour, linestyle=line, linewidth=1.8)
    axes.plot(
        xs,
        means,
        color=colour,
        marker=marker,
        markersize=6.5,
        linestyle="none",
        markerfacecolor=colour if index % 2 == 0 else "white",
    )
    axes.plot(
        [],
        [],
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=6.5,
        markerfacecolor=colour if index % 2 == 0 else "white",
        label=fit(cells[0]["model"], _LABEL),
    )


def _axis(axes: Axes, place: Mapping[float, float]) -> None:
    span = max(place.values()) - min(place.values()) or 1.0
    axes.set_xlim(min(place.values()) - 0.09 * span, max(place.values()) + 0.09 * span)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(place.values()), ["∞\nno privacy" if math.isinf(e) else f"{e:g}" for e in place])
    finite = [position for epsilon, position in place.items() if math.isfinite(epsilon)]
    if finite and math.inf in place:
        middle = (max(finite) + place[math.inf]) / 2
        for stroke in (middle - 0.01 * span, middle + 0.01 * span):  # the axis is broken here
            axes.plot(
                stroke,
                0,
                marker=[(-1, -2), (1, 2)],
                markersize=9,
                color=INK,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )
    axes.set_xlabel("privacy loss ε (smaller is more private; logarithmic)" if finite else "privacy loss ε")


def _extent(score: Mapping[str, Any]) -> tuple[float, float]:
    return (score["mean"], score["mean"]) if score["low"] is None else (score["low"], score["high"])


def _description(
    cells: Sequence[Mapping[str, Any]], models: Sequence[str], score: str, reference: tuple[str, float]
) -> str:
    told = []
    for model in models:
        own = sorted((c for c in cells if c["model"] == model), key=lambda c: number(c["epsilon"]))
        points = (
            f"{'without privacy' if c['epsilon'] == 'inf' else 'epsilon ' + format(c['epsilon'], 'g')} "
            f"{interval_words(c['scores'][score])} of {c['n']}"
            for c in own
        )
        told.append(f"{model}: {', '.join(points)}")
    name, level = reference
    return (
        f"{TITLES[score]} by network, mean and 95 % interval of so many runs. {'. '.join(told)}. {name}: {level:.3f}."
    )
