"""Utility of a recipe at several epsilons, over seeds: what the README's table shows.

    python -m benchmarks.utility pneumoniamnist --epsilon 8 3 --seeds 0 1 2 --data-root /data --json

Runs that are in ``--runs`` already (by name) are not repeated, so an interrupted grid goes on where it stopped. Each
run is seeded: reproducible, and therefore for measurement only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpeq.config import load_config
from dpeq.console import RichObserver
from dpeq.training.run import run

_NEEDED = ("run.json", "metrics.json", "plan.json")


def measure(recipe: str, epsilon: str, seed: int, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """One run, trained if it is not there, as a row of the result."""
    name = f"{recipe}-eps{epsilon}-seed{seed}"
    folder = runs / name
    if not all((folder / file).is_file() for file in _NEEDED):
        config = load_config(
            recipe, [f"privacy.epsilon={epsilon}", f"training.seed={seed}", f"name={name}", *overrides]
        )
        with RichObserver(Console()) as observer:
            folder = run(config, out=runs, command=f"benchmarks.utility {name}", observer=observer).folder
    facts, metrics, plan = (json.loads((folder / file).read_text()) for file in _NEEDED)
    return {
        "recipe": recipe,
        "epsilon": epsilon,
        "delta": plan["delta"],
        "unit": plan["unit"],
        "seed": seed,
        "auc": metrics["test"]["auc"]["value"],
        "accuracy": metrics["test"]["accuracy"]["value"],
        "majority_accuracy": metrics["test"]["majority_accuracy"],
        "val_auc": metrics["val"]["auc"]["value"],
        "network": facts["model"]["name"],
        "parameters": facts["model"]["parameters"],
        "noise_multiplier": plan["noise_multiplier"],
        "accountant": plan["accountant"],
        "train_seconds": facts["seconds"]["train"],
        "peak_mib": facts["peak_memory_mib"],
        "threads": facts["threads"],
        "device": facts["device"],
        "git": facts["git"],
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds, per epsilon."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["epsilon"], []).append(row)
    return [
        {
            "epsilon": epsilon,
            "seeds": len(group),
            **{
                f"{key}_{name}": function([row[key] for row in group])
                for key in ("auc", "accuracy")
                for name, function in (("mean", statistics.fmean), ("low", min), ("high", max))
            },
            "train_seconds_mean": statistics.fmean(row["train_seconds"] for row in group),
            "peak_mib": max(row["peak_mib"] for row in group),
        }
        for epsilon, group in groups.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Utility of a recipe at several epsilons, over seeds.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--epsilon", nargs="+", default=["8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    overrides = list(options.overrides)
    if options.data_root is not None:
        overrides.append(f"data.root={options.data_root}")
    rows = [
        measure(options.recipe, epsilon, seed, options.runs, overrides)
        for epsilon in options.epsilon
        for seed in options.seeds
    ]
    summary = summarise(rows)
    if options.json:
        print(json.dumps({"device": rows[0]["device"], "summary": summary, "rows": rows}, indent=1))
        return
    table = Table("epsilon", "seeds", "test AUC (range)", "accuracy (range)", "seconds")
    for group in summary:
        auc, accuracy = (
            f"{group[f'{key}_mean']:.3f} ({group[f'{key}_low']:.3f} to {group[f'{key}_high']:.3f})"
            for key in ("auc", "accuracy")
        )
        table.add_row(group["epsilon"], str(group["seeds"]), auc, accuracy, f"{group['train_seconds_mean']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
