"""Peak memory of a training step by the methods of :mod:`benchmarks.steps`, each in a process of its own.

    python -m benchmarks.memory --json
    python -m benchmarks.memory --tasks 2d-28 --views 4

``peak_mib`` is the most that a process held during three steps above what it held before them, with the network and the
images there and the libraries loaded; ``process_mib`` the whole of it; ``ratio`` that of ``process_mib`` to the
non-private step's. On a GPU both are what torch allocated. ``gradients_mib`` is the per-unit gradients alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.steps import METHODS, TASKS, Task

_PROGRAM = """
import json, sys, warnings
from pathlib import Path
import torch
from benchmarks.memory import peak_mib, now_mib, forget_peak
from benchmarks.steps import TASKS, build_step
from dataclasses import replace
from dpeq.allocation import keep_freed_blocks
warnings.simplefilter("ignore")
name, method, batch, views, device = sys.argv[1:]
torch.set_num_threads(1)
keep_freed_blocks()
device = torch.device(device)
step = build_step(method, replace(TASKS[name], batch=int(batch), views=int(views)), device)
before = now_mib(device)
forget_peak(device)
for _ in range(3):
    step()
print(json.dumps([before, peak_mib(device)]))
"""


def now_mib(device: Any) -> float:
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device) / 2**20
    return _status("VmRSS")


def peak_mib(device: Any) -> float:
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status("VmHWM")


def forget_peak(device: Any) -> None:
    """The peak counts from here on."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 2**10
    raise RuntimeError(f"/proc/self/status has no {key}; this benchmark needs Linux.")


def measure(name: str, method: str, task: Task, device: str) -> dict[str, Any]:
    arguments = [name, method, str(task.batch), str(task.views), device]
    run = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=True)
    before, peak = json.loads(run.stdout)
    return {
        "network": task.network,
        "size": task.size,
        "batch": task.batch,
        "views": task.views,
        "method": method,
        "peak_mib": round(peak - before, 1),
        "process_mib": round(peak, 1),
        "gradients_mib": 0.0 if method == "nonprivate" else round(_gradients_mib(task), 1),
    }


def _gradients_mib(task: Task) -> float:
    from dpeq.models.cost import parameter_count
    from dpeq.models.registry import build_model, resolve_spec

    model = build_model(resolve_spec(task.choice, task.shape, 2), task.shape[0], 2, seed=0)
    return parameter_count(model) * task.batch * 4 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a training step, private and not.")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = ["nonprivate", *[m for m in METHODS if m in options.methods and m != "nonprivate"]]
    cases = []
    for name in options.tasks:
        task = replace(TASKS[name], batch=options.batch)
        cases += [(name, method, task) for method in names]
        if options.views > 1:
            cases.append((name, "dpeq", replace(task, views=options.views)))
            cases.append((name, "dpeq", replace(task, batch=task.batch * options.views)))
    rows: list[dict[str, Any]] = []
    for name, method, task in track(cases, "measuring", console=Console(stderr=True)):
        row = measure(name, method, task, options.device)
        if method == "nonprivate":
            reference = row
        ratios = {"ratio": "process_mib", "ratio_of_steps": "peak_mib"}
        rows.append(row | {key: round(row[what] / reference[what], 3) for key, what in ratios.items()})
    if options.json:
        import torch

        from benchmarks.step_time import device_name

        print(json.dumps({"device": device_name(torch.device(options.device)), "rows": rows}, indent=1))
        return
    columns = ("network", "size", "batch", "views", "method", "peak_mib", "process_mib", "gradients_mib", "ratio",
               "ratio_of_steps")  # fmt: skip
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
