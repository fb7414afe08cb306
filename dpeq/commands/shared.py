"""What all verbs share: where they print, and the options that several have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["Config", "DataRoot", "Json", "Overrides", "Reports", "Runs", "screen", "screen_for_errors"]

# No markup: a path in square brackets is a path. No highlighting: a number in a sentence is part of the sentence.
screen = Console(markup=False, highlight=False)
screen_for_errors = Console(stderr=True, markup=False, highlight=False)

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe such as pneumoniamnist.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as in privacy.epsilon=3.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder that holds the data set's file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder for run directories.")]
Reports = Annotated[Path, typer.Option("--reports", help="Folder for reports.")]
