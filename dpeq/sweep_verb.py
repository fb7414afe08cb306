"""What the verb ``sweep`` does: the grid is shown with its price, then run, and summarised as it goes."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dpeq.errors import ConfigError, DpeqError

if TYPE_CHECKING:
    from dpeq.privacy.plan import PrivacyPlan
    from dpeq.sweep.cell import State
    from dpeq.sweep.grid import Cell
    from dpeq.sweep.pool import Ended

__all__ = ["Asked", "sweep"]


@dataclass(frozen=True)
class Asked:
    """What was said on the command line; None where nothing was."""

    config: str
    overrides: tuple[str, ...]
    epsilons: tuple[str, ...]
    models: tuple[str, ...]
    seeds: int
    seeded: bool
    workers: int | None
    out: Path | None
    reports: Path | None
    data_root: Path | None


def sweep(out: Console, err: Console, asked: Asked, *, commands: bool, dry_run: bool, only: str | None) -> None:
    """Runs the grid, shows it (``dry_run``), prints it as commands, or runs its one cell ``only``.

    Raises :class:`typer.Exit` with 1 when a cell failed, and as shells have it when a signal stopped the sweep; errors
    of the grid itself are :class:`~dpeq.errors.DpeqError`.
    """
    from dpeq.sweep.grid import make_grid, parse_epsilons

    cells = make_grid(
        asked.config,
        asked.overrides,
        epsilons=parse_epsilons(asked.epsilons),
        models=asked.models,
        repetitions=asked.seeds,
        seeded=asked.seeded,
        data_root=asked.data_root,
    )
    folder = asked.out or Path("runs") / f"{Path(asked.config).stem}-sweep"
    reports = asked.reports or folder / "reports"
    if commands:
        for cell in cells:
            print(_command(asked, folder, reports, cell))
    elif only is not None:
        _run_one(out, err, asked, cells, only, folder, reports)
    else:
        from dpeq.privacy import accounting

        with accounting.session("pld", "rdp"):  # the forecast and every summary ask them
            _run_all(out, err, asked, cells, folder, reports, dry_run=dry_run)


def _command(asked: Asked, folder: Path, reports: Path, cell: Cell) -> str:
    """The command that runs one cell of this grid, on any machine that sees the same files, and does it only once."""
    words = ["dpeq", "sweep", asked.config, *asked.overrides]
    for option, values in (("--epsilon", asked.epsilons), ("--model", asked.models)):
        words += [option, *values] if values else []
    words += ["--seeds", str(asked.seeds), *(["--seeded"] if asked.seeded else [])]
    words += ["--data-root", str(asked.data_root)] if asked.data_root is not None else []
    words += ["--out", str(folder), "--reports", str(reports), "--cell", cell.name]
    return shlex.join(words)


def _told(asked: Asked, cell: Cell) -> str:
    """What a report says that the run was made by: the ordinary verb, without paths."""
    from dpeq.training.provenance import command_line

    return command_line("dpeq", ["train", asked.config, *cell.overrides])


def _run_one(
    out: Console, err: Console, asked: Asked, cells: Sequence[Cell], name: str, folder: Path, reports: Path
) -> None:
    chosen = [cell for cell in cells if cell.name == name]
    if not chosen:
        raise ConfigError(f"This grid has no cell '{name}'; --commands prints all that it has.")
    from dpeq.console import RichObserver, summary_table
    from dpeq.interruption import GracefulStop
    from dpeq.sweep.cell import run_cell
    from dpeq.training.run import Interrupted

    cell, stop = chosen[0], GracefulStop()
    try:
        with stop, RichObserver(out) as observer:
            outcome = run_cell(
                cell.config,
                out=folder,
                reports=reports,
                command=_told(asked, cell),
                observer=observer,
                interruptible=stop,
            )
    except (Interrupted, KeyboardInterrupt):
        err.print(f"Stopped; the same command goes on with {cell.name}.", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    if outcome is None:
        out.print(f"{cell.name} is done already.", soft_wrap=True)
    else:
        out.print(summary_table(outcome.report))
        out.print(f"Report: {outcome.html}", soft_wrap=True)


def _run_all(
    out: Console, err: Console, asked: Asked, cells: Sequence[Cell], folder: Path, reports: Path, *, dry_run: bool
) -> None:
    from dpeq.console import duration
    from dpeq.sweep.forecast import plans_of, seconds_of
    from dpeq.training.files import make_folder
    from dpeq.training.prepare import prepare

    # Networks that do not fit are refused, and what speaks against one is said, before any budget is spent.
    prepared = {model: prepare(config) for model, config in {cell.model: cell.config for cell in cells}.items()}
    states, refused = _states(cells, folder)
    todo = [cell for cell in cells if states.get(cell.name, "done") != "done"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(asked.workers or _usual_workers(cells, cores), len(todo)))
    threads = max(1, cores // workers)
    counts = Counter(states.values())
    begun = counts["unfinished"] + counts["unreported"]
    out.print(
        f"{len(cells)} cells in {folder}: {counts['done']} done, {begun} unfinished, {counts['new']} to begin; "
        f"{workers} at a time, {threads} thread(s) each.",
        soft_wrap=True,
    )
    plans = plans_of(cells)
    out.print(_price(asked, plans, states, folder), soft_wrap=True)
    work = seconds_of(todo, prepared, plans, threads)
    if todo:
        seconds = max(sum(work.values()) / workers, max(work.values()))
        out.print(f"Time on this machine: about {duration(seconds)} of training, with nothing else on it.")
    if dry_run:
        for cell in cells:
            out.print(f"  {states.get(cell.name, 'refused'):<10}  {cell.name}", soft_wrap=True)
        _end(err, refused, [], None)
        return
    make_folder(folder)
    make_folder(folder / "logs")
    make_folder(reports)
    ended, exit_code = _run_pool(out, asked, cells, todo, folder, reports, workers, threads, work)
    failed = [f"{one.cell.name}: {one.error}" for one in ended if one.error is not None]
    failed += _summarise(out, cells, folder, reports, show=True)
    _end(err, refused, failed, exit_code)


def _run_pool(
    out: Console,
    asked: Asked,
    cells: Sequence[Cell],
    todo: Sequence[Cell],
    folder: Path,
    reports: Path,
    workers: int,
    threads: int,
    work: Mapping[str, float],
) -> tuple[list[Ended], int | None]:
    """How the cells ended, and the exit code of a sweep that was stopped."""
    from dpeq.interruption import GracefulStop
    from dpeq.sweep.display import SweepDisplay
    from dpeq.sweep.pool import run_cells

    def summarise() -> list[str]:
        return _summarise(out, cells, folder, reports, show=False)

    stop = GracefulStop()
    ended: list[Ended] = []
    try:
        with stop, stop(folder) as should_stop, SweepDisplay(out, work, summarise) as audience:
            ended = run_cells(
                todo,
                out=folder,
                reports=reports,
                logs=folder / "logs",
                commands=lambda cell: _told(asked, cell),
                workers=workers,
                threads=threads,
                audience=audience,
                should_stop=should_stop,
            )
    except KeyboardInterrupt:
        pass  # the children are gone, and their ledgers ahead of their weights
    return ended, stop.exit_code if stop.signal is not None else None


def _end(err: Console, refused: Sequence[str], failed: Sequence[str], exit_code: int | None) -> None:
    """``refused`` cells could not be run as they are, ``failed`` ones were tried."""
    for how, sentences in (("Refused", refused), ("Failed", failed)):
        for sentence in sentences:
            err.print(f"{how}: {sentence}", style="red", soft_wrap=True)
    if exit_code is not None:
        err.print("Stopped; the same command goes on.", soft_wrap=True)
        raise typer.Exit(exit_code)
    if refused:
        err.print(f"{len(refused)} refused; the same command refuses them again until what is named is changed.")
    if failed:
        err.print(f"{len(failed)} failed; the same command tries again, and goes on where there are checkpoints.")
    if refused or failed:
        raise typer.Exit(1)


def _usual_workers(cells: Sequence[Cell], cores: int) -> int:
    """A GPU is for one run at a time; of processors each run gets two."""
    from dpeq.training.prepare import choose_device

    if any(choose_device(cell.config.training.device).type == "cuda" for cell in cells):
        return 1
    return max(1, cores // 2)


def _states(cells: Sequence[Cell], folder: Path) -> tuple[dict[str, State], list[str]]:
    """What has become of every cell; a sentence for each that cannot be run there."""
    from dpeq.sweep.cell import state_of

    states: dict[str, State] = {}
    refused = []
    for cell in cells:
        try:
            states[cell.name] = state_of(folder / cell.name, cell.config)
        except DpeqError as error:
            refused.append(f"{cell.name}: {error}")
    return states, refused


def _price(asked: Asked, plans: Mapping[str, PrivacyPlan], states: Mapping[str, State], folder: Path) -> str:
    """Of what is in the folder the plan that was really spent; runs outside the grid, and refused cells', count too.

    So does every training that an audit of a run there took.

    Raises :class:`~dpeq.errors.ConfigError` for a run of another unit, with which no total can be given.
    """
    from dpeq.privacy.composition import read_spent
    from dpeq.reporting.audit import trainings_for_audits
    from dpeq.sweep.forecast import price_of

    lie = {path.parent.name: read_spent(path).plan for path in sorted(folder.glob("*/ledger.jsonl"))}
    for name, plan in lie.items():
        if any(plan.unit != own.unit for own in plans.values()):
            raise ConfigError(
                f"The run in {folder / name} protects one {plan.unit}, and this sweep another unit, so they cannot be "
                "summed up; give the sweep another --out."
            )
    besides = [plan for name, plan in lie.items() if name not in states]
    audits = [plan for name, plan in lie.items() for _ in range(trainings_for_audits(folder / name, plan))]
    return price_of([lie.get(name, plans[name]) for name in states], besides, audits, seeded=asked.seeded)


def _summarise(out: Console, cells: Sequence[Cell], folder: Path, reports: Path, *, show: bool) -> list[str]:
    """Writes the summary of all runs in ``folder``, also of such as this sweep does not name: they spent, too."""
    from dpeq.reporting.summary import build_summary
    from dpeq.reporting.summary_html import write_summary

    found = sorted(path.parent.name for path in folder.glob("*/ledger.jsonl"))
    named = [cell.name for cell in cells if cell.name in found]
    runs = [folder / name for name in (*named, *(name for name in found if name not in named))]
    if not any((run / "run.json").is_file() for run in runs):
        return []
    try:
        summary = build_summary(runs, below=reports)
        html, _ = write_summary(summary, reports)
    except DpeqError as error:
        return [str(error)]
    if show:
        for sentence in (*summary["conclusions"], *summary["privacy"]["sentences"]):
            out.print(sentence, soft_wrap=True)
        out.print(f"Summary: {html}", soft_wrap=True)
    return []
