"""The trade-off around a plan as a picture: what steps and batches cost, and the noise they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.solving import TradeOff
from dpeq.reporting.figure import CURVES, INK, MARKERS, style
from dpeq.reporting.numbers import signal

__all__ = ["check_picture", "draw_trade_off"]

_FORMATS = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """Raises :class:`ConfigError` when ``path`` cannot become a picture: its suffix, or its folder."""
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"The picture {path.name} ends in none of {', '.join(_FORMATS)}; name it so.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} for the picture; make it, or choose another.")


def draw_trade_off(at_noise: Sequence[TradeOff], at_epsilon: Sequence[TradeOff], plan: PrivacyPlan, path: Path) -> None:
    """Writes two panels to ``path``, whose suffix says how: svg, png or pdf.

    Left epsilon against steps at the plan's noise, right noise per expected unit (sigma / B, the noise on a mean
    gradient in clipping norms) against steps at the plan's epsilon, one line per batch size in both; the plan itself is
    ringed. Lines differ in marker and dash, not in colour alone. The same numbers give the same bytes. Raises as
    :func:`check_picture`.
    """
    check_picture(path)
    with style():
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _lines(left, at_noise, lambda row: row.epsilon)
        _lines(right, at_epsilon, lambda row: row.noise_to_batch)
        left.axhline(plan.epsilon_target, color=INK, linewidth=0.8, linestyle=":")
        ring = {"marker": "o", "markersize": 13, "fillstyle": "none", "color": INK, "linestyle": "none"}
        left.plot(plan.steps, plan.epsilon_spent, **ring)
        right.plot(plan.steps, plan.noise_multiplier / plan.expected_batch_size, **ring)
        left.set(ylabel=f"epsilon at delta = {plan.delta:g}", title=f"Noise multiplier {plan.noise_multiplier:g}")
        right.set(ylabel="noise / expected batch", title=f"Epsilon {plan.epsilon_target:g}")
        for axes in (left, right):
            axes.set(xlabel="steps", xscale="log", yscale="log")
            counts = sorted({row.steps for row in at_noise})
            axes.set_xticks(counts, [f"{count:,}" for count in counts])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: signal(value))
            axes.yaxis.set_minor_locator(NullLocator())
        lines, names = left.get_legend_handles_labels()
        figure.legend(lines, names, title="expected batch", loc="outside right upper")
        date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
        suffix = path.suffix.lower().removeprefix(".")
        figure.savefig(path, format=suffix, metadata=date[suffix], dpi=160)


def _lines(axes: Axes, rows: Sequence[TradeOff], value: object) -> None:
    assert callable(value)
    for number, batch in enumerate(sorted({row.expected_batch_size for row in rows})):
        colour, dashes = CURVES[number % len(CURVES)]
        own = [row for row in rows if row.expected_batch_size == batch]
        axes.plot(
            [row.steps for row in own],
            [value(row) for row in own],
            color=colour,
            linestyle=dashes,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            label=f"{batch:,}",
        )
