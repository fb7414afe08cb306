"""Seconds to build a network in a fresh process: cold (no cached bases, escnn solves) and warm (bases on disk).

    python -m benchmarks.build_time --json

Importing torch is not counted; importing dpeq and everything else that building needs is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

# name -> (expression for the configuration's choice, input shape)
NETWORKS = {
    "EqResNet-9, D4": ("ModelChoice('eqresnet9')", (1, 28, 28)),
    "EqResNet-9, D8": ("ModelChoice('eqresnet9', group='D8')", (1, 28, 28)),
    "EqResNet-9, SO2": ("ModelChoice('eqresnet9', group='SO2')", (1, 28, 28)),
    "family M, separable": ("ModelChoice('eqnet-m')", (1, 28, 28)),
    "family M 3D, O, full": ("ModelChoice('eqnet-3d-m', group='O', block='full')", (1, 28, 28, 28)),
    "family M 3D, Oh, full": ("ModelChoice('eqnet-3d-m', group='Oh', block='full')", (1, 28, 28, 28)),
    "family M 3D, Oh, separable": ("ModelChoice('eqnet-3d-m', group='Oh')", (1, 28, 28, 28)),
}

_PROGRAM = """
import sys, time
import torch
start = time.perf_counter()
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
spec = resolve_spec({choice}, {shape}, 2)
build_model(spec, 1, 2, seed=0)
print(time.perf_counter() - start, "escnn" in sys.modules)
"""


def build(choice: str, shape: tuple[int, ...], cache: str) -> tuple[float, bool]:
    """Seconds, and whether escnn was needed."""
    program = _PROGRAM.format(choice=choice, shape=shape)
    environment = {**os.environ, "DPEQ_CACHE": cache}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    seconds, needed = result.stdout.split()
    return float(seconds), needed == "True"


def measure(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name, (choice, shape) in track(NETWORKS.items(), "building", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as cache:
            cold, _ = build(choice, shape, cache)
            warm = [build(choice, shape, cache) for _ in range(repeats)]
        if any(needed for _, needed in warm):
            raise RuntimeError(f"{name} imported escnn although its bases are cached.")
        rows.append({"network": name, "cold_seconds": cold, "warm_seconds": min(s for s, _ in warm)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to build networks, cold and warm.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.repeats)
    if options.json:
        device = f"{platform.machine()} CPU, {os.cpu_count()} cores"
        print(json.dumps({"device": device, "rows": rows}, indent=1))
        return
    table = Table("network", "cold, s", "warm, s")
    for row in rows:
        table.add_row(row["network"], f"{row['cold_seconds']:.2f}", f"{row['warm_seconds']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
