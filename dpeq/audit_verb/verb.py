"""One audit from beginning to end, and its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import typer
from rich.console import Console

from dpeq.audit_verb.asked import Method, resolve
from dpeq.errors import ConfigError
from dpeq.privacy import accounting

__all__ = ["audit"]


def audit(
    out: Console,
    err: Console,
    target: str,
    overrides: list[str],
    *,
    method: str,
    canaries: int,
    repetitions: int,
    shadows: int,
    certain: bool | None,
    folder: Path | None,
    data_root: Path | None,
) -> None:
    """Audits the plan of a configuration or a run, by repeating its step or by trainings that are attacked.

    Raises :class:`typer.Exit` with 1 when the bound contradicts the plan, and as shells have it when a signal stopped
    the audit; all else that is wrong is a :class:`~dpeq.errors.DpeqError`.
    """
    if method not in get_args(Method):
        raise ConfigError(f"--method is {method}; give {' or '.join(get_args(Method))}.")
    if certain is not None and method != "step":
        raise ConfigError("--certain and --coins are about the step alone; leave them out, or give --method step.")
    with accounting.session("pld", "rdp"):  # their libraries load while this process still imports
        from dpeq.audit.kept import refuse_over
        from dpeq.audit_verb.repeating import repeat
        from dpeq.audit_verb.training import train_with_canaries, train_with_shadows
        from dpeq.interruption import GracefulStop
        from dpeq.training.files import make_folder

        work, amount = {
            "step": (repeat, repetitions),
            "one-run": (train_with_canaries, canaries),
            "black-box": (train_with_canaries, canaries),
            "shadow": (train_with_shadows, shadows),
        }[method]
        asked = resolve(
            target,
            overrides,
            method,  # type: ignore[arg-type]  # checked above
            amount=amount,
            certain=certain is not False,
            folder=folder,
            data_root=data_root,
        )
        make_folder(asked.folder, owner_alone=True)
        refuse_over(asked.folder)
        stop = GracefulStop()
        try:
            with stop:
                outcome = work(out, asked, stop)
        except KeyboardInterrupt:
            outcome = None
        if outcome is None:
            err.print("Stopped; the same command goes on.", soft_wrap=True)
            raise typer.Exit(stop.exit_code)
        from dpeq.audit_verb.outcome import as_table, write

        write(asked, outcome)
    out.print(as_table(outcome))
    out.print(f"ROC curve: {asked.folder / 'roc.svg'}", soft_wrap=True)
    if asked.run is not None:
        asking = " --attacks-on-units" if outcome.results[-1].details["looks_at_units"] else ""
        out.print(f"'dpeq report {asked.run}{asking}' shows it in the report.", soft_wrap=True)
    if any(result.contradicts for result in outcome.results):
        err.print(
            "The audit contradicts the plan: more is revealed than it allows. Do not release what was trained so.",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(1)
