"""The ROC curve of an attack beside the limit that the plan sets, on axes that other pictures of tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from dpeq.reporting.figure import BLUE, FAINT, GREY, INK, VERMILLION, finish, new_figure, style
from dpeq.reporting.numbers import percent, percent_up

__all__ = ["RATES", "attack_plot", "draw_attack", "rate_axes"]

RATES = (1e-5, 1e-4, 0.001, 0.01, 0.1, 1.0)
"""False alarm rates that are marked."""

_ROOM = 1.3


def rate_axes(axes: Axes, smallest: float, hits: str) -> None:
    """Axes for hit rates over false alarm rates, logarithmic from ``smallest`` (one of :data:`RATES`) to 1."""
    axes.set_xscale("log")
    axes.set(xlim=(smallest, 1.0), ylim=(0, 1.02))
    axes.xaxis.set_major_locator(FixedLocator([rate for rate in RATES if rate >= smallest]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_xlabel("false alarms (outsiders accused)")
    axes.set_ylabel(hits)


def draw_attack(axes: Axes, attack: Mapping[str, Any]) -> None:
    """Draws ``attack`` (as audit.json has it): its curve, intervals of its hit rates, the plan's limit, pure chance."""
    smallest = _smallest(attack)
    if attack["limit"] is not None:
        limit = [(a, t) for a, t in attack["limit"] if a >= smallest * (1 - 1e-9)]
        rates, hits = zip(*limit, strict=True)
        axes.plot(rates, hits, color=VERMILLION, linestyle="--", label="limit", zorder=3)  # an attack may lie on it
    edge = smallest / _ROOM  # the curve's first point is at no false alarms, which no logarithmic axis has
    found = [(max(a, edge), t) for a, t in attack["roc"]]
    axes.step([a for a, _ in found], [t for _, t in found], where="post", color=BLUE, linewidth=2.0, label="attack")
    chance = [smallest ** (1.0 - i / 100) for i in range(101)]  # no straight line on these axes
    axes.plot(chance, chance, color=INK, linestyle=":", label="pure chance")
    for row in attack["hit_rates"]:
        if row["rate"] >= smallest:
            axes.plot([row["rate"]] * 2, [row["low"], row["high"]], color=GREY, linewidth=1.5, marker="_")
    rate_axes(axes, smallest, "hits (insiders found)")
    axes.set_xlim(left=edge)  # an interval at the smallest rate does not hide in the frame


def attack_plot(attack: Mapping[str, Any], name: str) -> str:
    """The picture as a page's figure; ``name`` is the page's own for it."""
    with style():
        figure, axes = new_figure(3.1)
        draw_attack(axes, attack)
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.5, columnspacing=1.3, handlelength=2.2)
        rates = "; ".join(
            f"at {100 * row['rate']:g} % false alarms {percent(row['hits'])} hits, with an interval from "
            f"{percent(row['low'])} to {percent(row['high'])}"
            + ("" if row["allowed"] is None else f", where {percent_up(row['allowed'])} are allowed")
            for row in attack["hit_rates"]
        )
        desc = (
            f"The hit rate of an attack over its false alarm rate, on a logarithmic axis: {rates}. The area below the "
            f"curve is {attack['auc']:.3f}; pure chance has 0.500 and hits as often as it accuses."
        )
        return finish(figure, name, "What the attack found", desc)


def _smallest(attack: Mapping[str, Any]) -> float:
    """The largest marked rate below 1 at which one of the others would be accused, or none."""
    return next((rate for rate in reversed(RATES[:-1]) if rate * attack["others"] <= 1), RATES[0])
