"""The audits of a recipe, run as commands: what each proves, what its attack finds, and what it takes.

    python -m benchmarks.audit_attacks --data-root DIR --repeats 3 --json > docs/measurements/audit_attacks.json
    python -m benchmarks.audit_attacks --data-root DIR --repeats 1 --json \\
        --row shadow --row "shadow, without privacy" --row "shadow, overtrained" > docs/measurements/audit_shadows.json

A bound is luck in part, so audits are repeated. A training's bound by gradient canaries does not depend on the network,
so the trainings are of a small one. The last rows are the membership attack on trainings without privacy: what finds
nothing there would prove nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dpeq.reporting.numbers import round_down

SMALL = ["model.group=C4", "model.fields=[1,1,2]", "model.norm_groups=[1,1,1]"]
OVERTRAINED = [
    *("model.name=vit-tiny", "privacy.max_grad_norm=1000", "privacy.steps=600", "privacy.expected_batch_size=256"),
    *("training.optimizer=adam", "training.lr=0.001"),
]
ROWS: dict[str, list[str]] = {
    "step": [],
    "step, with its coins": ["--coins"],
    "one-run": [*SMALL, "--method", "one-run"],
    "black-box": [*SMALL, "--method", "black-box"],
    "shadow": [*SMALL, "--method", "shadow"],
    "shadow, without privacy": [*SMALL, "privacy.epsilon=inf", "--method", "shadow"],
    "shadow, overtrained": [*OVERTRAINED, "privacy.epsilon=inf", "--method", "shadow", "--shadows", "8"],
}


def audited(recipe: str, words: Sequence[str], data_root: Path | None) -> dict[str, Any]:
    """One audit as a command in a folder of its own; raises :class:`RuntimeError` when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "audit"
        command = [sys.executable, "-m", "dpeq", "audit", recipe, *words, "--out", str(out)]
        if data_root is not None:
            command += ["--data-root", str(data_root)]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        record = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    attack = record["attack"]
    return {
        "command": " ".join(["dpeq audit", recipe, *words]),
        **{key: record[key] for key in ("method", "delta", "epsilon_lower", "details")},  # with the counts behind it
        "attack": {key: value for key, value in attack.items() if key not in ("roc", "limit")},  # the curves
        "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("audit", "epsilon at least", "of", "area", "hits at 0.1 %", "at 1 %", "CPU, s")
    for row in rows:
        rates = row["attack"]["hit_rates"]
        hits = (f"{rate['hits']:.4f} ({rate['low']:.4f} to {rate['high']:.4f})" for rate in rates)
        table.add_row(
            row["row"],
            round_down(row["epsilon_lower"]),
            f"{float(row['details']['theoretical']):.2f}",
            f"{row['attack']['auc']:.3f}",
            *hits,
            f"{row['cpu_seconds']:.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="pneumoniamnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument(
        "--row", action="append", choices=list(ROWS), help="this one; may be repeated; all but the shadows by default"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    names = asked.row or [name for name in ROWS if not name.startswith("shadow")]
    load = os.getloadavg()[0]
    turns = [(name, turn) for turn in range(asked.repeats) for name in names]
    rows = [
        {"row": name, "repeat": turn, **audited(asked.recipe, ROWS[name], asked.data_root)}
        for name, turn in track(turns, "Auditing", console=Console(stderr=True))
    ]
    if asked.json:
        device = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        loads = [round(load, 1), round(os.getloadavg()[0], 1)]
        print(json.dumps({"device": device, "load_before_and_after": loads, "rows": rows}, indent=1))
    else:
        Console().print(_table(rows))


if __name__ == "__main__":
    main()
