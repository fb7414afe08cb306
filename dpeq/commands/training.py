"""Verbs that train: train, sweep, demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dpeq.commands.shared import Config, DataRoot, Overrides, Reports, Runs, screen, screen_for_errors
from dpeq.errors import ConfigError
from dpeq.options import split_values

__all__ = ["demo", "sweep", "train"]


def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or the name of a shipped recipe such as pneumoniamnist; not with --resume."),
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train without noise, to compare.")] = False,
    runs: Runs = Path("runs"),
    reports: Reports = Path("privacy_reports"),
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with the unfinished run in this folder.")
    ] = None,
) -> None:
    """Train privately, evaluate, and write the report."""
    if resume is not None:
        given = [*([config] if config is not None else []), *(overrides or [])]  # there is no CONFIG: all are overrides
        if named := [word for word in given if "=" not in word]:
            raise ConfigError(f"With --resume a run goes on with its own configuration; leave '{named[0]}' out.")
        source = context.get_parameter_source("runs")
        if source is not None and source.name != "DEFAULT":
            raise ConfigError("With --resume a run goes on in its own folder; leave --runs out.")
        _train(None, given, data_root, baseline, runs, reports, resume)
    elif config is None:
        raise ConfigError("Nothing says what to train; give a CONFIG, or --resume RUN.")
    else:
        _train(config, overrides or [], data_root, baseline, runs, reports)


def sweep(
    config: Config,
    overrides: Overrides = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option("--epsilon", metavar="E ...", help="Targets, as in 1 2 4 8 inf; the recipe's by default."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME ...",
            help="Networks: presets, a preset with a group as eqresnet9-d4, cnn-twin, wide-resnet-twin or vit-twin (as "
            "many parameters as the first preset listed, else as the recipe's), or import paths.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, help="Repetitions of every cell, each with the system's randomness, as for release."
        ),
    ] = 1,
    seeded: Annotated[
        bool,
        typer.Option("--seeded", help="Give repetitions training.seed 0, 1, 2: reproducible, and not for release."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Runs at a time; by default one for two processor cores, or one on a GPU."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; runs/<recipe>-sweep by default.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option("--reports", help="Folder for the reports and the summary; OUT/reports by default.")
    ] = None,
    data_root: DataRoot = None,
    commands: Annotated[
        bool, typer.Option("--commands", help="Print one command for each cell instead, for any scheduler.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, price and time, and train nothing.")] = False,
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="NAME", help="Run this one cell alone, unless it is done.")
    ] = None,
) -> None:
    """Train a grid of networks, epsilons and repetitions, and summarise it. CONFIG stands first. Run again to go on."""
    from dpeq.sweep_verb import Asked
    from dpeq.sweep_verb import sweep as run_sweep

    if commands + dry_run + (cell is not None) > 1:
        raise ConfigError("--commands, --dry-run and --cell are three different things; give one of them.")
    asked = Asked(
        config,
        tuple(overrides or ()),
        tuple(split_values(epsilon)),
        tuple(split_values(model)),
        seeds,
        seeded,
        workers,
        out,
        reports,
        data_root,
    )
    run_sweep(screen, screen_for_errors, asked, commands=commands, dry_run=dry_run, only=cell)


def demo(
    overrides: Overrides = None,
    baseline: Annotated[bool, typer.Option(help="Also train without noise, to compare.")] = True,
    runs: Runs = Path("runs"),
    reports: Reports = Path("privacy_reports"),
) -> None:
    """The whole path on a generated phantom hospital: DICOM in, patient-level privacy, report out."""
    _train("demo", overrides or [], None, baseline, runs, reports)


def _train(
    source: str | None,
    overrides: list[str],
    data_root: Path | None,
    baseline: bool,
    runs: Path,
    reports: Path,
    resume: Path | None = None,
) -> None:
    if resume is not None:
        from dpeq.training.start import resumed_config

        config = resumed_config(resume, overrides, data_root=data_root)
    else:
        from dpeq.config import load_config

        assert source is not None
        config = load_config(source, overrides, data_root=data_root)  # before the seconds that the other imports take
    from dpeq.console import RichObserver, summary_table
    from dpeq.interruption import GracefulStop
    from dpeq.pipeline import train_and_report
    from dpeq.training.provenance import command_line
    from dpeq.training.run import Interrupted

    command = command_line("dpeq", sys.argv[1:])
    stop = GracefulStop(rank=int(os.environ.get("RANK", "0")), world=int(os.environ.get("WORLD_SIZE", "1")))
    try:
        with stop, RichObserver(screen) as observer:
            outcome = train_and_report(
                config,
                runs=runs,
                reports=reports,
                command=command,
                baseline=baseline,
                observer=observer,
                resume=resume,
                interruptible=stop,
            )
    except Interrupted as interrupted:
        screen_for_errors.print(str(interrupted), soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    except KeyboardInterrupt:
        going_on = f"; go on with 'dpeq train --resume {stop.folder}'" if stop.folder is not None else ""
        screen_for_errors.print(f"Interrupted{going_on}.", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    if outcome is None:  # a process beside the first
        return
    screen.print(summary_table(outcome.report))
    screen.print(f"Report: {outcome.html}", soft_wrap=True)
