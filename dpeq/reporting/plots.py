"""The figures of a report, as SVG elements that stand inside an HTML page.

Every figure is drawn with matplotlib's object interface on an SVG canvas: no pyplot and no lasting change to
matplotlib's settings. Letters become outlines, so the figure looks the same wherever it is opened; what it shows is
told by its ``title`` and ``desc`` and by a table beside it. Colours follow Okabe and Ito's set, which survives colour
blindness, and never carry meaning alone: line style and marker differ too. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dpeq.reporting.numbers import round_up

__all__ = ["Series", "confusion_plot", "epsilon_plot", "roc_plot", "score_plot"]

_BLUE, _VERMILLION, _INK, _GREY, _FAINT = "#0072B2", "#B84A00", "#1F2933", "#6B7785", "#D9DFE5"
_CURVES = ((_BLUE, "-"), (_VERMILLION, "--"), ("#007A5A", "-."), (_GREY, ":"), ("#8F4B77", (0, (5, 1, 1, 1, 1, 1))))
_WIDTH = 4.5  # inches; 324 points, so that a phone shows the letters at about their drawn size
_LABEL = 16  # characters of a class name that fit beside an axis
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Series:
    """One row of dots in :func:`score_plot`: ``points`` maps a score's name to (value, low, high)."""

    label: str
    points: Mapping[str, tuple[float, float, float]]
    role: Literal["model", "companion", "reference"] = "model"


def epsilon_plot(curve: Sequence[tuple[int, float]], spent: tuple[int, float], target: float) -> str:
    """Epsilon over the steps of the plan, the point that was spent, and the target."""
    with _style():
        figure, axes = _figure(2.9)
        axes.axhline(target, color=_GREY, linestyle="--", linewidth=1.1)
        axes.plot([s for s, _ in curve], [e for _, e in curve], color=_BLUE, linewidth=2.0)
        axes.plot(*spent, marker="o", markersize=7, color=_BLUE, markeredgecolor="white", markeredgewidth=1.2)
        late = spent[0] > 0.7 * curve[-1][0]  # the label stays below the curve and inside the frame
        axes.annotate(
            f"spent: {round_up(spent[1])}",
            spent,
            xytext=(-2, -22) if late else (8, -8),
            textcoords="offset points",
            ha="right" if late else "left",
            va="top",
            color=_INK,
        )
        axes.annotate("target", (0, target), xytext=(4, 3), textcoords="offset points", va="bottom", color=_GREY)
        axes.set_xlim(0, curve[-1][0] * 1.03)
        axes.set_ylim(0, max(target, *(e for _, e in curve)) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel("epsilon (upper bound)")
        desc = (
            f"Line that rises from epsilon {round_up(curve[0][1])} at step {curve[0][0]} to {round_up(curve[-1][1])} "
            f"at step {curve[-1][0]}, the end of the plan. A dot marks what was spent: epsilon {round_up(spent[1])} "
            f"after step {spent[0]}. A dashed line marks the target {target:g}."
        )
        return _finish(figure, "epsilon", "Epsilon over training", desc)


def score_plot(series: Sequence[Series]) -> str:
    """Scores as dots with their intervals: one row per score, one marker per series."""
    names = list(dict.fromkeys(name for one in series for name in one.points))
    markers = {"model": ("o", _BLUE, "-"), "companion": ("s", _VERMILLION, "--"), "reference": ("D", _GREY, "-")}
    with _style():
        figure, axes = _figure(0.95 + 0.27 * len(names) * len(series))
        for i, one in enumerate(series):
            marker, colour, line = markers[one.role]
            for j, name in enumerate(names):
                if name not in one.points:
                    continue
                value, low, high = one.points[name]
                y = j + (i - (len(series) - 1) / 2) * 0.24
                if high > low:
                    axes.plot([low, high], [y, y], color=colour, linestyle=line, linewidth=1.8, solid_capstyle="butt")
                face = colour if one.role == "model" else "white"
                label = _text(one.label, 40) if j == 0 else "_nolegend_"
                axes.plot(
                    value, y, marker, markersize=6.5, color=colour, markerfacecolor=face, linestyle="none", label=label
                )
        axes.set_yticks(range(len(names)), [_text(name, 24) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        for j in range(1, len(names)):
            axes.axhline(j - 0.5, color=_FAINT, linewidth=0.8)
        lowest = min(low for one in series for _, low, _ in one.points.values())
        axes.set_xlim(max(0.0, min(0.5, lowest - 0.03)), 1.0)
        axes.grid(axis="x", color=_FAINT, linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=len(series), handletextpad=0.3, columnspacing=1.2)
        desc = "; ".join(
            f"{one.label}: " + ", ".join(f"{name} {_pointed(*point)}" for name, point in one.points.items())
            for one in series
        )
        return _finish(figure, "scores", "Test scores with 95 % intervals", desc + ".")


def confusion_plot(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Confusion matrix: rows are the truth, shade is the share of the row, the number is the count."""
    k = len(classes)
    share = [[count / max(sum(row), 1) for count in row] for row in matrix]
    with _style():
        figure, axes = _figure(2.9 if k <= 4 else 3.6)
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                shade, ink = _shade(share[i][j])
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=shade, edgecolor="white", linewidth=2))
                if k <= 10:
                    size = 11 if k < 5 else 8
                    axes.text(j, i, f"{count:,}", ha="center", va="center", color=ink, fontsize=size)
        axes.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5))
        names = [_text(name, _LABEL) for name in classes]
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
        return _finish(figure, "confusion", "Confusion matrix of the test set", desc)


def roc_plot(curves: Sequence[Mapping[str, Sequence[float]]], labels: Sequence[str], auc: str) -> str:
    """ROC curves, one per label, and the diagonal of guessing; ``auc`` is the sentence end that names the area."""
    with _style():
        figure, axes = _figure(2.9 if len(curves) <= 5 else 3.4)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.0, linestyle=(0, (2, 2)), label="guessing")
        for i, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            colour, line = _CURVES[i % len(_CURVES)]
            width = 2.0 if i < len(_CURVES) else 1.1
            axes.plot(
                curve["fpr"], curve["tpr"], color=colour, linestyle=line, linewidth=width, label=_text(label, _LABEL)
            )
        axes.set(xlim=(-0.01, 1.0), ylim=(0, 1.01), xlabel="false alarms (1 - specificity)", ylabel="sensitivity")
        axes.legend(loc="lower right", ncols=1 if len(curves) <= 6 else 2)
        desc = f"Sensitivity against the rate of false alarms for {len(curves)} curve(s); {auc}."
        return _finish(figure, "roc", "ROC curve of the test set", desc)


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's own defaults plus ours, whatever the reader's matplotlibrc says; put back on leaving."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)  # defaults may name retired settings
        kept = {"backend", "backend_fallback", "interactive", "toolbar", "timezone"}
        matplotlib.rcParams.update({k: v for k, v in matplotlib.rcParamsDefault.items() if k not in kept})
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "path",
                "svg.hashsalt": "dpeq",
                "font.family": "DejaVu Sans",
                "font.size": 9.0,
                "text.parse_math": False,  # a class name may hold a dollar sign
                "text.color": _INK,
                "axes.labelcolor": _INK,
                "axes.edgecolor": _GREY,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "xtick.color": _GREY,
                "ytick.color": _GREY,
                "xtick.labelcolor": _INK,
                "ytick.labelcolor": _INK,
                "legend.frameon": False,
                "legend.fontsize": 8.5,
            }
        )
        yield


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return figure, axes


def _finish(figure: Figure, name: str, title: str, desc: str) -> str:
    """The figure as one ``<svg>`` element: named, described, without namespaces, dates, comments or shared ids."""
    buffer = io.BytesIO()
    figure.canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would reach the whole page; its two rules are set on the root instead.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            value = re.sub(r"url\(#", f"url(#{name}-", value)
            if key == "id":
                value = f"{name}-{value}"
            elif key in ("href", f"{_XLINK}href"):
                key, value = "href", f"#{name}-{value.removeprefix('#')}"
            element.set(key, value)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": box,
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
            "style": "stroke-linejoin: round; stroke-linecap: butt",
        }
    )
    for position, (tag, text) in enumerate((("title", title), ("desc", desc))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(position, element)
    return ElementTree.tostring(root, encoding="unicode")


def _shade(share: float) -> tuple[tuple[float, float, float], str]:
    """A blue that deepens with ``share`` in 0..1, and the ink that reads on it (WCAG relative luminance)."""
    light, dark = (0.925, 0.945, 0.965), (0.031, 0.318, 0.612)
    red, green, blue = (a + share * (b - a) for a, b in zip(light, dark, strict=True))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (red, green, blue), "white" if luminance < 0.25 else _INK


def _text(text: str, width: int) -> str:
    """``text`` as the plot font can draw it: unknown letters as question marks, long names cut."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    drawn = "".join(letter if ord(letter) in known else "?" for letter in text)
    return drawn if len(drawn) <= width else drawn[: width - 1] + "…"


def _pointed(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if high > low else f"{value:.3f}"
