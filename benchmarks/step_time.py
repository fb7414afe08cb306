"""Seconds of a training step by four methods, side by side; see :mod:`benchmarks.steps`.

    python -m benchmarks.step_time --json
    python -m benchmarks.step_time --tasks 2d-28 --views 4

Every round takes one step by each method in turn, so that a busy machine slows all alike; ``ratio`` is the median over
rounds of a method's seconds over the non-private step's of the same round, ``seconds`` the fastest round. One thread
by default. With ``--views K`` two rows are added: K views of every unit, and a batch K times as large without views,
whose ``ratio_to_views`` says what views cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.steps import METHODS, TASKS, Task, build_step
from dpeq.allocation import keep_freed_blocks


def timed(step: Any, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(task: Task, methods: dict[str, dict[str, Any]], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row per method; the first must be the one that others are compared with."""
    steps = {label: build_step(device=device, **given) for label, given in methods.items()}
    for step in steps.values():
        timed(step, device)  # kernels are chosen and caches filled
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            seconds[label].append(timed(step, device))
    reference = seconds[next(iter(steps))]
    rows = []
    for label, given in methods.items():
        mine: Task = given["task"]
        best = min(seconds[label])
        rows.append(
            {
                "network": task.network,
                "size": task.size,
                "batch": mine.batch,
                "views": mine.views,
                "method": label,
                "seconds": round(best, 5),
                "ratio": round(statistics.median(a / b for a, b in zip(seconds[label], reference, strict=True)), 3),
                "images_per_second": round(mine.batch * mine.views / best, 1),
            }
        )
    return rows


def methods_for(task: Task, names: list[str], views: int, bf16: bool, compiled: bool) -> dict[str, dict[str, Any]]:
    chosen = {name: {"method": name, "task": task, "bf16": bf16} for name in names}
    if compiled:
        chosen["nonprivate, compiled"] = {"method": "nonprivate", "task": task, "bf16": bf16, "compiled": True}
    if views > 1:
        larger = replace(task, batch=task.batch * views)
        chosen[f"dpeq, {views} views"] = {"method": "dpeq", "task": replace(task, views=views), "bf16": bf16}
        chosen[f"dpeq, batch x{views}"] = {"method": "dpeq", "task": larger, "bf16": bf16}
    return chosen


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of a training step, private and not.")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "nonprivate" not in options.methods:
        parser.error("--methods needs nonprivate, which the others are compared with")
    torch.set_num_threads(options.threads)
    keep_freed_blocks()  # as the command line does
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)  # of Opacus' first layer
    device = torch.device(options.device)
    names = [name for name in METHODS if name in options.methods]
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("timing", total=len(options.tasks))
        for name in options.tasks:
            task = replace(TASKS[name], batch=options.batch)
            chosen = methods_for(task, names, options.views, options.bf16, options.compile)
            rows += measure(task, chosen, options.rounds, device)
            progress.advance(bar)
    if options.json:
        print(json.dumps({"device": device_name(device), "bf16": options.bf16, "rows": rows}, indent=1))
        return
    table = Table("network", "size", "batch", "views", "method", "seconds", "ratio", "images/s")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("network", "size", "batch", "views", "method", "seconds", "ratio")),
                      str(row["images_per_second"]))  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
