"""The ROC curve of an attack beside the limit that the plan sets, as a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dpeq.errors import ConfigError
from dpeq.privacy.audit.curves import SubsampledGaussianCurves
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.tradeoff import Profile, gaussian_profile
from dpeq.reporting.figure import BLUE, FAINT, GREY, INK, VERMILLION, WIDTH, style

__all__ = ["draw_roc", "profile_of"]

_RATES = (1e-4, 0.001, 0.01, 0.1, 1.0)


def profile_of(plan: PrivacyPlan) -> Profile:
    """The privacy profile of all steps of a private plan, rounded outwards."""
    if not plan.private:
        raise ConfigError("A plan without privacy has no privacy profile; give a finite epsilon.")
    if plan.sample_rate == 1.0:
        return gaussian_profile(math.sqrt(plan.steps) / plan.noise_multiplier)
    curves = SubsampledGaussianCurves(plan.delta, plan.sample_rate, plan.steps)
    return curves.profile(1.0 / plan.noise_multiplier)


def draw_roc(attack: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes the picture of an audit's ``attack`` to ``path``, svg or png by its suffix.

    The same numbers give the same bytes.
    """
    smallest = next((r for r in reversed(_RATES) if r <= 1.0 / attack["others"]), _RATES[0])
    rates = np.geomspace(smallest, 1.0, 200)
    drawn = [(max(a, smallest), t) for a, t in attack["roc"] if a >= smallest or t > 0]
    with style():
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if attack["limit"] is not None:
            limit = [(a, t) for a, t in attack["limit"] if a >= smallest]
            axes.plot(*zip(*limit, strict=True), color=VERMILLION, linestyle="--", label="limit")
        axes.step([a for a, _ in drawn], [t for _, t in drawn], where="post", color=BLUE, linewidth=2, label="attack")
        axes.plot(rates, rates, color=INK, linestyle=":", label="pure chance")
        for row in attack["hit_rates"]:
            if row["rate"] >= smallest:
                axes.plot([row["rate"], row["rate"]], [row["low"], row["high"]], color=GREY, linewidth=1.5)
        axes.set_xscale("log")
        axes.set(xlim=(smallest, 1.0), ylim=(0, 1.02), title=title)
        axes.xaxis.set_major_locator(FixedLocator([r for r in _RATES if r >= smallest]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_xlabel("false alarms (outsiders accused)")
        axes.set_ylabel("hits (insiders found)")
        figure.legend(loc="outside lower center", ncols=3)
        suffix = path.suffix.removeprefix(".")
        metadata = {"svg": {"Date": None}, "png": {}}[suffix]
        figure.savefig(path, format=suffix, metadata=metadata, dpi=160)
