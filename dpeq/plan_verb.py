"""What the verb ``plan`` does: the answer first, within a second or two; torch is loaded to estimate the time alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from dpeq.errors import ConfigError
from dpeq.privacy import accounting

if TYPE_CHECKING:
    from dpeq.config import RunConfig
    from dpeq.privacy.plan import PrivacyPlan

__all__ = ["show_plan"]


def show_plan(
    out: Console,
    source: str,
    overrides: list[str],
    *,
    wanted: str | None,
    noise_multiplier: float | None,
    plot: Path | None,
    time: bool,
    json: bool,
) -> None:
    """Prints the plan of a configuration, or one constant solved for, and draws the trade-off if asked."""
    # The accountants' libraries take longest to load: they begin while this process still reads the configuration.
    with accounting.session("pld", "prv", "rdp"):
        from dpeq.config import load_config

        config = load_config(source, overrides)
        if wanted is not None or noise_multiplier is not None:
            _solve(out, config, wanted, noise_multiplier, plot, json=json)
            return
        from dpeq.console import plan_table, print_json  # loads while the accountants do
        from dpeq.planning import plan_of

        plan = plan_of(config)
        if plot is not None:
            _draw(config, plan, plot)
    if json:
        estimate = {"seconds_estimate": round(_seconds(config, plan), 3)} if time else {}
        print_json({**plan.to_dict(), **estimate})
        return
    out.print(plan_table(plan, None))
    if plot is not None:
        out.print(f"Trade-off: {plot}", soft_wrap=True)
    if time:
        from dpeq.console import duration

        out.print(f"Time on this machine: about {duration(_seconds(config, plan))}.", soft_wrap=True)


def _solve(
    out: Console,
    config: RunConfig,
    wanted: str | None,
    noise_multiplier: float | None,
    plot: Path | None,
    *,
    json: bool,
) -> None:
    from dpeq.planning import Wanted, override_of, solution_of

    if wanted not in get_args(Wanted):
        raise ConfigError(f"--for is {wanted or 'missing'}; solve for {', '.join(get_args(Wanted))}.")
    if noise_multiplier is None:
        raise ConfigError(f"--for {wanted} needs the noise; give --noise-multiplier.")
    if plot is not None:
        raise ConfigError("--plot draws the plan of a configuration; leave --for out.")
    solution = solution_of(config, wanted, noise_multiplier)  # type: ignore[arg-type]  # one of Wanted
    from dataclasses import asdict

    from dpeq.console import print_json, solution_table

    override = override_of(solution)
    if json:
        print_json({**asdict(solution), "override": override})
    else:
        out.print(solution_table(solution, override))


def _draw(config: RunConfig, plan: PrivacyPlan, path: Path) -> None:
    from dpeq.planning import trade_offs_of
    from dpeq.reporting.tradeoff import check_picture, draw_trade_off

    check_picture(path)  # before the seconds that the numbers take
    at_noise, at_epsilon = trade_offs_of(config, plan)
    draw_trade_off(at_noise, at_epsilon, plan, path)


def _seconds(config: RunConfig, plan: PrivacyPlan) -> float:
    """Also refuses what no training would accept: the network, its sizes, the views."""
    from dpeq.models.registry import build_model
    from dpeq.training.estimate import estimate_seconds
    from dpeq.training.run import choose_device, prepare

    prepared = prepare(config)
    model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), seed=0)
    units, device = config.training.physical_units, choose_device(config.training.device)
    return estimate_seconds(model, prepared.shape, plan, physical_units=units, device=device)
