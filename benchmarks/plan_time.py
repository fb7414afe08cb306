"""Seconds from the command ``dpeq plan`` to its answer, cold: nothing kept on disk, every import paid.

    python -m benchmarks.plan_time --json
    python -m benchmarks.plan_time --before DIR     (another checkout of dpeq, timed in turns with this one)

``answer_seconds`` is when the plan is on standard output, ``command_seconds`` when the command ends, which by then has
also estimated how long a training takes; ``cpu_seconds`` is what all its processes computed, whatever else the machine
did. Medians over the repeats, but for ``least_answer_seconds``, the quickest. Rows "without time" leave the estimate
out. Rows of imports time what a plan cannot do without, alone in a fresh process: the interpreter, reading a
configuration, and each accountant's library. The plan's noise is shown, so that a quicker answer can be seen to be the
same one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent.parent
# An ordinary plan, a small epsilon, a plan at which prv-accountant fails by itself, and many steps.
PLANS: dict[str, list[str]] = {
    "epsilon 8": [],
    "epsilon 1": ["privacy.epsilon=1"],
    "1000 steps": ["privacy.steps=1000", "privacy.expected_batch_size=256"],
    "batch 128, 5000 steps": ["privacy.steps=5000", "privacy.expected_batch_size=128"],
}
IMPORTS = {
    "interpreter": "pass",
    "configuration and card": "import dpeq.config, dpeq.data.cards, dpeq.console",
    "dp-accounting": "from dpeq.privacy import _prv_worker as w; w._operations('pld')",
    "prv-accountant": "from dpeq.privacy import _prv_worker as w; w._operations('prv')",
    "Opacus' Renyi analysis": (
        "from dpeq.privacy import _prv_worker as w; w._operations('rdp')['epsilon']([[0.1, 1.0, 1]], 1e-5)"
    ),
    "what a training imports": "import dpeq.training.run",
}


def timed(command: list[str], folder: Path) -> tuple[dict[str, float], str]:
    """Runs ``command`` in ``folder`` with an empty cache; its times, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "DPEQ_CACHE": cache, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        answer = time.perf_counter() - begin
        rest, problems = process.stdout.read(), process.stderr.read()
        if process.wait() != 0:
            raise RuntimeError(f"{' '.join(command)}: {problems.strip()}")
        whole = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"answer_seconds": answer, "command_seconds": whole, "cpu_seconds": cpu}, first + rest


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    median = {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
    return {**median, "least_answer_seconds": round(min(row["answer_seconds"] for row in rows), 2)}


def measure(recipe: str, repeats: int, before: Path | None) -> list[dict[str, Any]]:
    """Rows of all plans; checkouts take turns, so that what else the machine does weighs on both."""
    rows: list[dict[str, Any]] = []
    for name, overrides in PLANS.items():
        plan = [sys.executable, "-m", "dpeq", "plan", recipe, *overrides]
        variants = {("now", "with time"): (plan, HERE), ("now", "without time"): ([*plan, "--no-time"], HERE)}
        if before is not None:
            variants["before", "with time"] = (plan, before)
        times: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in variants}
        said: dict[tuple[str, str], str] = {}
        for _ in range(repeats):
            for key, (command, folder) in variants.items():
                seconds, said[key] = timed(command, folder)
                times[key].append(seconds)
        for (version, kind), seconds_of in times.items():
            row: dict[str, Any] = {"plan": name, "version": version, "kind": kind, **_median(seconds_of)}
            row["noise_multiplier"] = _noise(said[version, kind])
            if before is not None and version == "now":
                old = _median(times["before", "with time"])
                row["answer_ratio"] = round(row["answer_seconds"] / old["answer_seconds"], 3)
                row["cpu_ratio"] = round(row["cpu_seconds"] / old["cpu_seconds"], 3)
            rows.append(row)
    for name, statement in IMPORTS.items():
        seconds_of = [timed([sys.executable, "-c", statement], HERE)[0] for _ in range(repeats)]
        median = _median(seconds_of)
        rows.append({"imports": name, **{k: median[k] for k in ("command_seconds", "cpu_seconds")}})
    return rows


def _noise(table: str) -> float:
    for line in table.splitlines():
        if "noise multiplier" in line:
            return float(line.replace("│", " ").split()[-1])
    raise RuntimeError(f"no plan was printed: {table}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds until dpeq plan answers, cold.")
    parser.add_argument("--recipe", default="pneumoniamnist")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout, to time side by side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows = measure(options.recipe, options.repeats, options.before)
    if options.json:
        device = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        loads = [round(load, 1), round(os.getloadavg()[0], 1)]
        print(json.dumps({"device": device, "load_before_and_after": loads, "rows": rows}, indent=1))
        return
    table = Table("what", "version", "kind", "answer, s", "command, s", "CPU, s")
    for row in rows:
        table.add_row(
            str(row.get("plan", row.get("imports"))),
            *(str(row.get(key, "")) for key in ("version", "kind", "answer_seconds", "command_seconds", "cpu_seconds")),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
