"""The figures about privacy: what a test can find at most, the privacy profile, accountants, the loss over training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dpeq.reporting.figure import BLUE, FAINT, GREY, INK, VERMILLION, finish, new_figure, style
from dpeq.reporting.numbers import percent_up, round_down, round_up, scientific
from dpeq.reporting.roc import RATES, rate_axes

__all__ = ["accountant_plot", "epsilon_plot", "profile_plot", "trade_off_plot"]

_HALO = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}


def epsilon_plot(curve: Sequence[tuple[int, float]], spent: tuple[int, float], target: float) -> str:
    """Epsilon over the steps of the plan, the point that was spent, and the target."""
    with style():
        figure, axes = new_figure(2.9)
        axes.axhline(target, color=GREY, linestyle="--", linewidth=1.1)
        axes.plot([s for s, _ in curve], [e for _, e in curve], color=BLUE, linewidth=2.0)
        axes.plot(*spent, marker="o", markersize=7, color=BLUE, markeredgecolor="white", markeredgewidth=1.2)
        late = spent[0] > 0.7 * curve[-1][0]  # the label stays below the curve and inside the frame
        axes.annotate(
            f"spent: {round_up(spent[1])}",
            spent,
            xytext=(-2, -22) if late else (8, -8),
            textcoords="offset points",
            ha="right" if late else "left",
            va="top",
            color=INK,
        )
        axes.annotate("target", (0, target), xytext=(4, 3), textcoords="offset points", va="bottom", color=GREY)
        axes.set_xlim(0, curve[-1][0] * 1.03)
        axes.set_ylim(0, max(target, *(e for _, e in curve)) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel("ε (upper bound)")
        desc = (
            f"Line that rises from epsilon {round_up(curve[0][1])} at step {curve[0][0]} to {round_up(curve[-1][1])} "
            f"at step {curve[-1][0]}, the end of the plan. A dot marks what was spent: epsilon {round_up(spent[1])} "
            f"after step {spent[0]}. A dashed line marks the target {target:g}."
        )
        return finish(figure, "epsilon", "Epsilon over training", desc)


def trade_off_plot(curve: Sequence[tuple[float, float]], epsilon: float, delta: float, name: str = "tradeoff") -> str:
    """Largest hit rate over the false alarm rate: chance, this training, and what (epsilon, delta) alone would allow.

    ``curve`` holds (false alarm rate, least rate of misses); false alarms below 0.001 % are left out.
    """
    drawn = [(a, 1.0 - misses) for a, misses in curve if a >= RATES[0] * (1 - 1e-9)]
    rates = [a for a, _ in drawn]
    pair = [_from_pair(a, epsilon, delta) for a in rates]
    with style():
        figure, axes = new_figure(3.1)
        axes.fill_between(rates, rates, [t for _, t in drawn], color=BLUE, alpha=0.1, linewidth=0)
        axes.plot(rates, pair, color=VERMILLION, linestyle="--", linewidth=1.5, label="from (ε, δ) alone")
        axes.plot(rates, [t for _, t in drawn], color=BLUE, linewidth=2.2, label="limit for this training")
        axes.plot(rates, rates, color=INK, linestyle=":", linewidth=1.5, label="pure chance")
        rate_axes(axes, RATES[0], "hits at most (insiders found)")
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.5, columnspacing=1.3, handlelength=2.2)
        picked = "; ".join(
            f"at {100 * rate:g} % false alarms at most {percent_up(_near(drawn, rate))} hits, "
            f"from epsilon and delta alone {percent_up(_from_pair(rate, epsilon, delta))}"
            for rate in RATES[2:5]
        )
        desc = (
            f"The largest hit rate of any membership test over its false alarm rate: {picked}. Pure chance hits as "
            "often as it accuses."
        )
        return finish(figure, name, "What a membership test can find at most", desc)


def profile_plot(profile: Sequence[tuple[float, float]], spent: tuple[float, float], name: str = "profile") -> str:
    """Delta over epsilon, both of the same training: every pair on the line is guaranteed, ``spent`` is quoted."""
    shown = [(e, d) for e, d in profile if d >= 1e-10]
    with style():
        figure, axes = new_figure(3.1)
        axes.plot([e for e, _ in shown], [d for _, d in shown], color=BLUE, linewidth=2.2)
        axes.plot(*spent, marker="o", markersize=7, color=BLUE, markeredgecolor="white", markeredgewidth=1.2)
        axes.annotate(
            f"quoted: ε = {round_up(spent[0])}\nδ = {scientific(spent[1])}",
            spent,
            xytext=(-8, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            color=INK,
            bbox=_HALO,
        )
        axes.set_yscale("log")
        axes.set_ylim(1e-10, 1.5)
        axes.set_xlim(0, max(e for e, _ in shown) * 1.02)
        axes.yaxis.set_major_locator(LogLocator(base=100, numticks=8))
        axes.yaxis.set_major_formatter(lambda value, _: "1" if value == 1 else f"10{_power(value)}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_xlabel("ε")
        axes.set_ylabel("δ")
        picked = "; ".join(
            f"delta {scientific(d)} at epsilon {round_up(e)}" for e, d in (shown[0], shown[len(shown) // 2], shown[-1])
        )
        desc = (
            f"Delta falls as epsilon grows: {picked}. A dot marks the quoted pair, epsilon {round_up(spent[0])} "
            f"at delta {scientific(spent[1])}."
        )
        return finish(figure, name, "Privacy profile: delta over epsilon", desc)


def accountant_plot(rows: Sequence[tuple[str, Mapping[str, float]]], quoted: float) -> str:
    """One line per accountant: ``rows`` hold a name and {"lower", "estimate", "upper"}, as many of them as it gives."""
    values = [value for _, row in rows for value in row.values()] + [quoted]
    room = max(max(values) - min(values), 0.02)
    with style():
        figure, axes = new_figure(0.85 + 0.36 * len(rows))
        axes.axvline(quoted, color=INK, linestyle="--", linewidth=1.1)
        for y, (_, row) in enumerate(rows):
            if "lower" in row and "upper" in row:
                axes.plot([row["lower"], row["upper"]], [y, y], color=GREY, linewidth=2.0, solid_capstyle="butt")
            for key, marker, face in (("lower", "|", BLUE), ("estimate", "D", "white"), ("upper", "o", BLUE)):
                if key in row:
                    size = {"lower": 11, "estimate": 4.5, "upper": 6.5}[key]
                    axes.plot(
                        row[key], y, marker, markersize=size, color=BLUE, markerfacecolor=face, markeredgewidth=1.6
                    )
            if "upper" in row:
                text = round_up(row["upper"], 3)
                axes.annotate(
                    text, (row["upper"], y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5
                )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(min(values) - 0.08 * room, max(values) + 0.28 * room)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel("ε")
        desc = "; ".join(
            f"{name}: " + ", ".join(f"{key} {_rounded(key, value)}" for key, value in row.items()) for name, row in rows
        )
        return finish(
            figure, "accountants-figure", "Epsilon by accountant", f"{desc}. The quoted epsilon is {round_up(quoted)}."
        )


def _rounded(kind: str, value: float) -> str:
    return round_down(value, 3) if kind == "lower" else round_up(value, 3)


def _from_pair(a: float, epsilon: float, delta: float) -> float:
    """Largest hit rate at false alarm rate ``a`` by one (epsilon, delta); Kairouz, Oh, Viswanath, ICML 2015."""
    grown = math.exp(min(epsilon, 700.0)) * a + delta
    return max(0.0, min(1.0, grown, 1.0 - math.exp(-epsilon) * (1.0 - delta - a)))


def _near(curve: Sequence[tuple[float, float]], rate: float) -> float:
    """The hit rate at the first drawn point that is not below ``rate``: rounded towards the larger limit."""
    return next((hits for a, hits in curve if a >= rate * (1 - 1e-9)), 1.0)


def _power(value: float) -> str:
    return str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
