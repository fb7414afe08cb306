"""The ROC curve of an attack beside the limit that the plan sets, as a file: what the report shows of it, too."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dpeq.reporting.figure import WIDTH, style
from dpeq.reporting.roc import draw_attack
from dpeq.training.files import write_durably

__all__ = ["draw_roc"]


def draw_roc(attack: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes the picture of an audit's ``attack`` to ``path``, svg or png by its suffix, for its owner alone.

    The same numbers give the same bytes.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title)
        draw_attack(axes, attack)
        figure.legend(loc="outside lower center", ncols=3)
        suffix = path.suffix.removeprefix(".")
        metadata = {"svg": {"Date": None}, "png": {}}[suffix]
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, metadata=metadata, dpi=160)
    write_durably(path, drawn.getvalue())
