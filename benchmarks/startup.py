"""Seconds from the command to the first step of a training, cold (nothing kept on disk) and warm.

    python -m benchmarks.startup --json
    python -m benchmarks.startup --recipe pneumoniamnist --data-root DIR

A training is started as a user would, and watched through its ledger: a step is written there the moment before it
begins. ``first_step_seconds`` is when the first one begins, ``second_step_seconds`` when the second does. Warm means
that filter bases and the accountant's answer are on disk from an earlier run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def started(command: list[str], runs: Path, cache: Path) -> dict[str, float]:
    """Starts a training, waits for its second step and kills it: its ledger can bear that."""
    environment = {**os.environ, "DPEQ_CACHE": str(cache)}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--runs", str(runs)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seen: dict[int, float] = {}
    try:
        while len(seen) < 2:
            for ledger in runs.glob("*/ledger.jsonl"):
                steps = ledger.read_text(encoding="utf-8").count('"kind":"step"')
                for step in range(1, min(steps, 2) + 1):
                    seen.setdefault(step, time.perf_counter() - begin)
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read().decode() or "the training ended before its second step")
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return {"first_step_seconds": round(seen[1], 2), "second_step_seconds": round(seen[2], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from the command to the first step.")
    parser.add_argument("--recipe", default="pneumoniamnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="of the warm start; the fastest counts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    command = [sys.executable, "-m", "dpeq", "train", options.recipe]
    if options.data_root is not None:
        command += ["--data-root", str(options.data_root)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        times = []
        for number in range(1 + options.repeats):
            times.append(started(command, Path(folder) / f"runs{number}", cache))
        warm = min(times[1:], key=lambda t: t["first_step_seconds"])
        rows = [{"recipe": options.recipe, "start": name, **t} for name, t in (("cold", times[0]), ("warm", warm))]
    if options.json:
        device = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        print(json.dumps({"device": device, "rows": rows}, indent=1))
        return
    table = Table("recipe", "start", "first step begins, s", "second step begins, s")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
