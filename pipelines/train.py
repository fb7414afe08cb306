"""Train a recipe under its target epsilon and write the report.

    python pipelines/train.py pipelines/pneumoniamnist.yaml privacy.epsilon=8

The same as ``dpeq train``, as a script to copy and change.
"""

from __future__ import annotations

import os
import sys

# Read when torch loads: on a shared machine, threads that spin while they wait slow training down tenfold and more.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from rich.console import Console

from dpeq.config import load_config
from dpeq.console import RichObserver
from dpeq.errors import DpeqError
from dpeq.pipeline import train_and_report
from dpeq.training.provenance import command_line


def main(source: str, *overrides: str) -> None:
    with RichObserver(Console()) as observer:
        outcome = train_and_report(
            load_config(source, overrides),
            command=command_line("python pipelines/train.py", sys.argv[1:]),
            observer=observer,
        )
    if outcome is not None:  # under torchrun, the first process alone has one
        print(outcome.report["guarantee"]["statement"])
        print(f"Report: {outcome.html}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python pipelines/train.py RECIPE.yaml [section.key=value ...]")
    try:
        main(*sys.argv[1:])
    except DpeqError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
