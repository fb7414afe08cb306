"""Images per second of the random views, each kind by itself and all together.

    python -m benchmarks.augment_throughput --json

``ratio`` is the time of making a batch's views over that of the network's forward pass on the same batch in training
mode, for the smallest preset of the dimension, so views weigh most here. "exact" asks for views that move whole pixels;
for those the time of the same moves by interpolation and its largest error are given beside. One row turns the same
images with MONAI's RandAffine, one image at a time, as its pipelines do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from dpeq.data.augment import AugmentConfig
from dpeq.data.views import Augment
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.privacy.randomness import Randomness, Stream

SHAPES = {(28, 28): "eqresnet9-small", (64, 64): "eqresnet9-small", (28, 28, 28): "eqresnet9-3d-tiny"}
KINDS: dict[str, dict[str, Any]] = {
    "shift": {"shift": 4},
    "flip": {"flip": ("x", "y")},
    "quarter_turns": {"quarter_turns": True},
    "rotate": {"rotate": 15.0},
    "scale": {"scale": 0.1},
    "tilt": {"tilt": 15.0},
    "brightness, contrast": {"brightness": 0.1, "contrast": 0.1},
    "noise": {"noise": 0.05},
}
EXACT = ("shift", "flip", "quarter_turns")


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least of ``repeats``, spread over half a second at least, because other processes only ever add."""
    work()
    taken: list[float] = []
    end = time.perf_counter() + 0.5
    while len(taken) < repeats or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


def settings(dim: int) -> dict[str, AugmentConfig]:
    kinds = {name: values for name, values in KINDS.items() if dim == 3 or name != "tilt"}
    configs = {name: AugmentConfig.model_validate(values) for name, values in kinds.items()}
    flat = {name: values for name, values in kinds.items() if name != "tilt"}
    for name, chosen in (("exact, together", EXACT), ("all, together", tuple(flat)), ("all and tilt", tuple(kinds))):
        if name != "all and tilt" or dim == 3:
            together = {key: value for kind in chosen for key, value in kinds[kind].items()}
            configs[name] = AugmentConfig.model_validate(together)
    return configs


def views(augment: Augment, x: Tensor, stream: Stream) -> Tensor:
    """With the draws: they are made for every step, on the CPU."""
    return augment(x, augment.draw(stream, len(x)))


def by_monai(x: Tensor) -> Tensor:
    from monai.transforms import RandAffine

    degrees = torch.pi / 12
    turns = [degrees] if x.dim() == 4 else [0.0, 0.0, degrees]
    transform = RandAffine(prob=1.0, rotate_range=turns, mode="bilinear", padding_mode="reflection")
    return torch.stack([transform(image).as_tensor() for image in x])


def measure(
    spatial: tuple[int, ...], network: str, rows: int, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    x = torch.rand(rows, 1, *spatial, generator=torch.Generator().manual_seed(0)).to(device)
    model = build_model(resolve_spec(ModelChoice(network), (1, *spatial), 2), 1, 2, seed=0).to(device).train()
    forward = seconds(lambda: model(x), device, repeats)
    size = "x".join(str(edge) for edge in spatial)
    found = []

    def add(kind: str, taken: float, **more: Any) -> None:
        row = {"size": size, "batch": rows, "network": network, "views": kind, "seconds": taken}
        found.append({**row, "images_per_second": rows / taken, "ratio": taken / forward, **more})

    for kind, config in settings(len(spatial)).items():
        augment = Augment(config, len(spatial))
        stream = Randomness.create(0).stream("views", 1)
        more: dict[str, float] = {}
        if not config.interpolates and (config.shift or config.flip or config.quarter_turns):
            draws = augment.draw(stream, rows)
            moves = augment.moves(draws)
            more["interpolated_seconds"] = seconds(partial(augment._resample, x, moves), device, repeats)
            more["interpolated_error"] = float((augment._resample(x, moves) - augment(x, draws)).abs().max())
        add(kind, seconds(partial(views, augment, x, stream), device, repeats), **more)
    if device.type == "cpu":
        add("rotate, by MONAI", seconds(lambda: by_monai(x), device, min(repeats, 5)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of the random views.")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    for spatial, network in track(SHAPES.items(), "measuring", console=Console(stderr=True)):
        rows += measure(spatial, network, options.rows, device, options.repeats)
    if options.json:
        cpu = f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
        print(json.dumps({"device": name, "rows": rows}, indent=1))
        return
    table = Table("size", "views", "images/s", "of a forward pass", "interpolated instead", "its error")
    for row in rows:
        extra = ("", "")
        if "interpolated_seconds" in row:
            extra = (f"{row['interpolated_seconds'] / row['seconds']:.1f}x", f"{row['interpolated_error']:.0e}")
        table.add_row(row["size"], row["views"], f"{row['images_per_second']:,.0f}", f"{row['ratio']:.1%}", *extra)
    Console().print(table)


if __name__ == "__main__":
    main()
