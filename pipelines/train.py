"""Train a recipe under its target epsilon and write the report.

    python pipelines/train.py pipelines/pneumoniamnist.yaml privacy.epsilon=8

The same as ``dpeq train``, as a script to copy and change.
"""

from __future__ import annotations

import shlex
import sys

from dpeq.config import load_config
from dpeq.pipeline import train_and_report


def main(source: str, *overrides: str) -> None:
    outcome = train_and_report(load_config(source, overrides), command=shlex.join(["python", *sys.argv]))
    print(outcome.report["guarantee"]["statement"])
    print(f"Report: {outcome.html}")


if __name__ == "__main__":
    main(*sys.argv[1:])
