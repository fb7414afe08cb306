"""Seconds to add Gaussian noise to a sum of gradients, on one thread: floats by inversion, and integers on a grid.

    python -m benchmarks.noise_time --json

Inversion is what a careful float sampler does with the same stream: one uniform number of 52 bits each, put through
the normal quantile function. ``ratio`` is to inversion.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.special import ndtri
from torch import Tensor

from dpeq.privacy.gaussian import add_noise
from dpeq.privacy.randomness import Randomness, Stream

NUMBERS = (4_000, 40_000, 400_000, 4_000_000)


def by_inversion(total: Tensor, *, std: float, stream: Stream) -> Tensor:
    return total + std * torch.from_numpy(ndtri(stream.uniform(len(total)).numpy()))


METHODS: dict[str, Callable[..., Tensor]] = {"inversion": by_inversion, "discrete": add_noise}


def measure(repeats: int) -> list[dict[str, Any]]:
    """Medians; the methods take turns, so that a slow moment of the machine meets both."""
    random = Randomness.create(None)
    rows = []
    for numbers in NUMBERS:
        total = torch.randn(numbers, dtype=torch.float64)
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for step in range(repeats + 1):
            for method, add in METHODS.items():
                start = time.perf_counter()
                add(total, std=0.5, stream=random.stream("noise", step))
                seconds[method].append(time.perf_counter() - start)
        medians = {method: statistics.median(values[1:]) for method, values in seconds.items()}  # the first warms up
        rows += [
            {"numbers": numbers, "method": method, "seconds": median, "ratio": median / medians["inversion"]}
            for method, median in medians.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to add Gaussian noise.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.repeats)
    if options.json:
        device = f"{platform.machine()} CPU, 1 thread, torch {torch.__version__}"
        print(json.dumps({"device": device, "rows": rows}, indent=1))
        return
    table = Table("numbers", "method", "ms", "ratio")
    for row in rows:
        table.add_row(f"{row['numbers']:,}", row["method"], f"{1e3 * row['seconds']:.2f}", f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
