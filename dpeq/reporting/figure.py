"""What the figures of a report have in common: an SVG element that stands inside an HTML page.

Every figure is drawn with matplotlib's object interface on an SVG canvas: no pyplot and no lasting change to
matplotlib's settings. Letters become outlines, so the figure looks the same wherever it is opened; what it shows is
told by its ``title`` and ``desc`` and by a table beside it. Colours follow Okabe and Ito's set, which survives colour
blindness, and never carry meaning alone: line style and marker differ too. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

__all__ = [
    "BLUE",
    "CURVES",
    "FAINT",
    "GREY",
    "INK",
    "MARKERS",
    "VERMILLION",
    "WIDTH",
    "finish",
    "fit",
    "new_figure",
    "pointed",
    "style",
]

BLUE, VERMILLION, INK, GREY, FAINT = "#0072B2", "#B84A00", "#1F2933", "#5F6B79", "#D9DFE5"
CURVES = ((BLUE, "-"), (VERMILLION, "--"), ("#007A5A", "-."), (GREY, ":"), ("#8F4B77", (0, (5, 1, 1, 1, 1, 1))))
MARKERS = ("o", "s", "^", "D", "v")
WIDTH = 4.5  # inches; 324 points, so that a phone shows the letters at about their drawn size
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@contextmanager
def style() -> Iterator[None]:
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
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": GREY,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "xtick.color": GREY,
                "ytick.color": GREY,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "legend.frameon": False,
                "legend.fontsize": 8.5,
            }
        )
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure without a ground, ``width`` by ``height`` inches, and its axes; draw in it within :func:`style`."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    return figure, axes


def finish(figure: Figure, name: str, title: str, desc: str) -> str:
    """The figure as one ``<svg>`` element: named, described, without namespaces, dates, comments or shared ids.

    ``name`` is the page's own for this figure; every id starts with it.
    """
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


def fit(text: str, width: int) -> str:
    """``text`` as the plot font can draw it: unknown letters as question marks, more than ``width`` letters cut."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    drawn = "".join(letter if ord(letter) in known else "?" for letter in text)
    return drawn if len(drawn) <= width else drawn[: width - 1] + "…"


def pointed(score: Mapping[str, Any]) -> str:
    """A score with its interval for a description: '0.934 (0.912 to 0.951)'."""
    value, low, high = score["value"], score["low"], score["high"]
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if high > low else f"{value:.3f}"
