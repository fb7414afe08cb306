"""The command line: doctor, models, index, plan, train, sweep, demo, evaluate, audit, report, export.

Exit codes: 0 done, 2 bad usage or configuration, 3 data refused, 4 budget refused, 130 stopped by Ctrl-C, 143 by
SIGTERM, 1 anything else. An error is one sentence; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from dpeq.allocation import keep_freed_blocks
from dpeq.commands import prepare, runs, training
from dpeq.commands.shared import screen_for_errors
from dpeq.errors import DpeqError
from dpeq.options import ManyValues

__all__ = ["app", "main"]

app = typer.Typer(
    help="Differentially private training of equivariant networks on medical images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options of every verb; ``--debug`` is read in :func:`main`."""


app.command()(prepare.doctor)
app.command()(prepare.models)
app.command()(prepare.index)
app.command()(prepare.plan)
app.command()(training.train)
app.command(cls=ManyValues)(training.sweep)
app.command()(training.demo)
app.command()(runs.evaluate)
app.command()(runs.audit)
app.command()(runs.report)
app.command()(runs.export)


def main() -> None:
    """Entry point: turns every :class:`DpeqError` into one sentence and its exit code."""
    # Read when torch loads: on a shared machine, threads that spin while they wait slow training down tenfold and more.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_blocks()
    try:
        app()
    except DpeqError as error:
        if "--debug" in sys.argv:
            raise
        screen_for_errors.print(f"Error: {error}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in sys.argv:
            raise
        what = f"{error.filename}: " if error.filename else ""
        screen_for_errors.print(
            f"Error: {what}{error.strerror or error}; mend that and run the command again.", soft_wrap=True
        )
        sys.exit(1)
