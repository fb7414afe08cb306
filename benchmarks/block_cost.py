"""What a block costs and what it earns: seconds per private step against test AUC at epsilon 8.

    python -m benchmarks.block_cost pneumoniamnist demo --seeds 0 1 2 --data-root /data --json

The same residual network is built with full group convolutions, with separable ones and without symmetry (the CNN
twin), at several widths; each is trained privately with one plan per task, and its private step (forward, backward,
gradients per unit, clipping) is timed beside the others in one process. A network is on the frontier when no other is
both faster and better. Trainings that are in ``--cache`` already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torch import nn

from dpeq.config import load_config
from dpeq.data.images import ImageSet
from dpeq.evaluation.cases import cases_of
from dpeq.evaluation.predict import predict_cases
from dpeq.models.cost import count_macs
from dpeq.models.family import FamilySpec
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import train
from dpeq.training.run import load_data, make_plan, optimizer_settings, prepare
from dpeq.training.state import OptimizerSettings

Widths = tuple[int, int, int]
NARROW, SMALL, MIDDLE, WIDE = (4, 8, 16), (8, 16, 32), (12, 24, 48), (20, 40, 80)


@dataclass(frozen=True)
class Task:
    """A recipe, cut to the steps that a comparison of many networks can afford."""

    recipe: str
    groups: tuple[str, str]  # symmetric, trivial
    steps: int
    expected_batch_size: int
    widths: dict[str, tuple[Widths, ...]]
    rows: int  # of the timed batch


TASKS = {
    "pneumoniamnist": Task(
        "pneumoniamnist",
        ("D4", "trivial"),
        80,
        256,
        {"full": (NARROW, SMALL, MIDDLE), "separable": (SMALL, MIDDLE, WIDE), "cnn": (NARROW, SMALL, MIDDLE, WIDE)},
        64,
    ),
    "demo": Task(
        "demo",
        ("axial-D4", "trivial-3d"),
        60,
        100,
        {"full": (NARROW, SMALL), "separable": (NARROW, SMALL, MIDDLE), "cnn": (NARROW, SMALL, MIDDLE)},
        16,
    ),
}


def network(task: Task, kind: str, widths: Widths) -> FamilySpec:
    """The family's residual network with that block; fields stand for plain channels with as many parameters."""
    name = task.groups[1] if kind == "cnn" else task.groups[0]
    block = "separable" if kind == "separable" else "full"
    draft = FamilySpec(name, "none", (1, 1, 1), (1, 1, 1), (1, 1, 1), block, None, stem_pool=True)  # type: ignore[arg-type]
    return draft.with_widths(widths)


def train_once(
    spec: FamilySpec, splits: dict[str, ImageSet], plan: PrivacyPlan, settings: OptimizerSettings, seed: int
) -> float:
    """Test AUC of the averaged weights after one private training."""
    torch.manual_seed(seed)
    images = splits["train"]
    model = spec.build(images.images.shape[1], len(images.classes))
    with tempfile.TemporaryDirectory() as folder, Ledger.create(Path(folder) / "ledger.jsonl", plan) as ledger:
        result = train(model, images, plan, ledger, settings, Randomness.create(seed), device=torch.device("cpu"))
    test, cases = splits["test"], cases_of(splits["test"])
    scores = predict_cases(result.averaged, test, cases, device=torch.device("cpu"))[:, 1]
    return float(roc_auc_score(cases.labels, scores))


def time_steps(
    models: list[nn.Module], shape: tuple[int, ...], rows: int, plan: PrivacyPlan, repeats: int
) -> list[float]:
    """Median seconds of each model's private step, measured turn by turn so that a busy machine hurts all alike."""
    x, y = torch.randn(rows, *shape), torch.randint(0, 2, (rows,))
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for model, found in zip(models, seconds, strict=True):
            wrapped = UnitGradSampleModule(model.train())
            optimizer = PlanOptimizer(torch.optim.SGD(model.parameters(), 0.0), plan)
            start = time.perf_counter()
            wrapped.backward(wrapped(x), y)
            optimizer.accumulate()
            if turn > 0:  # the first turn warms up
                found.append(time.perf_counter() - start)
            wrapped.detach()
    return [statistics.median(s) for s in seconds]


def measure(task: Task, seeds: list[int], cache: Path, data_root: Path | None, repeats: int) -> list[dict[str, Any]]:
    config = load_config(
        task.recipe,
        [f"privacy.steps={task.steps}", f"privacy.expected_batch_size={task.expected_batch_size}"],
        data_root=data_root,
    )
    prepared = prepare(config)
    plan = make_plan(prepared)
    splits = load_data(prepared)
    settings = optimizer_settings(config)
    specs = [(kind, widths, network(task, kind, widths)) for kind, all_ in task.widths.items() for widths in all_]
    aucs = []
    for kind, widths, spec in track(specs, f"training on {task.recipe}", console=Console(stderr=True)):
        found = []
        for seed in seeds:
            file = cache / f"{task.recipe}-{task.steps}-{kind}-{'-'.join(map(str, widths))}-{seed}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(train_once(spec, splits, plan, settings, seed)))
            found.append(float(json.loads(file.read_text())))
        aucs.append(found)
    models = [spec.build(prepared.shape[0], len(prepared.card.classes)) for _, _, spec in specs]
    seconds = time_steps(models, prepared.shape, task.rows, plan, repeats)
    rows = []
    for (kind, widths, spec), model, auc, step in zip(specs, models, aucs, seconds, strict=True):
        rows.append(
            {
                "task": task.recipe,
                "network": kind,
                "group": spec.group,
                "widths": list(widths),
                "fields": list(spec.fields),
                "parameters": sum(p.numel() for p in model.parameters()),
                "macs": count_macs(model, prepared.shape),
                "method": "dpeq",
                "batch": task.rows,
                "steps": task.steps,
                "expected_batch_size": task.expected_batch_size,
                "epsilon": plan.epsilon_target,
                "noise_multiplier": plan.noise_multiplier,
                "seconds": step,
                "ratio": step / seconds[0],
                "auc": {"mean": statistics.fmean(auc), "low": min(auc), "high": max(auc), "seeds": len(auc)},
            }
        )
    for row in rows:
        row["frontier"] = not any(
            other["seconds"] < row["seconds"] and other["auc"]["mean"] >= row["auc"]["mean"] for other in rows
        )
        row["beyond_full"] = row["network"] == "separable" and not any(
            other["network"] == "full"
            and other["seconds"] <= row["seconds"]
            and other["auc"]["mean"] >= row["auc"]["mean"]
            for other in rows
        )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds per step against AUC, one panel per task: up and to the left is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(5.2 * len(names), 3.8), squeeze=False)
    looks = {"full": ("#1b6ca8", "o"), "separable": ("#c8452f", "s"), "cnn": ("#6b7280", "^")}
    labels = {"full": "full blocks", "separable": "separable blocks", "cnn": "CNN twin"}
    for axis, name in zip(axes[0], names, strict=True):
        for kind, (colour, marker) in looks.items():
            chosen = sorted((r for r in rows if r["task"] == name and r["network"] == kind), key=lambda r: r["seconds"])
            x, y = [1000 * r["seconds"] for r in chosen], [r["auc"]["mean"] for r in chosen]
            low = [r["auc"]["mean"] - r["auc"]["low"] for r in chosen]
            high = [r["auc"]["high"] - r["auc"]["mean"] for r in chosen]
            axis.errorbar(x, y, [low, high], color=colour, marker=marker, capsize=2, lw=1, label=labels[kind])
            for r, a, b in zip(chosen, x, y, strict=True):
                note = f"{r['parameters'] / 1000:.0f}k"
                axis.annotate(note, (a, b), textcoords="offset points", xytext=(5, 4), fontsize=7, color=colour)
        axis.set(xscale="log", xlabel="milliseconds per private step", title=f"{name}, epsilon {rows[0]['epsilon']:g}")
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_formatter("{x:.0f}")
        axis.tick_params(axis="x", which="both", labelsize=8)
        axis.set_ylabel("test AUC (mean, range over seeds)")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per private step against AUC, by kind of block.")
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cache", type=Path, default=Path("runs/block_cost"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--plot", type=Path, help="Also draw the frontier into this file.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        row
        for name in options.tasks
        for row in measure(TASKS[name], options.seeds, options.cache, options.data_root, options.repeats)
    ]
    if options.plot is not None:
        draw(rows, options.plot)
    if options.json:
        device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
        print(json.dumps({"device": device, "rows": rows}, indent=1))
        return
    table = Table("task", "network", "fields", "parameters", "MMACs", "s/step", "ratio", "test AUC (range)", "frontier")
    for row in rows:
        auc = f"{row['auc']['mean']:.3f} ({row['auc']['low']:.3f} to {row['auc']['high']:.3f})"
        cells = (row["task"], row["network"], "-".join(map(str, row["fields"])), f"{row['parameters']:,}")
        numbers = (f"{row['macs'] / 1e6:.1f}", f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", auc)
        table.add_row(*cells, *numbers, "yes" if row["frontier"] else "")
    Console().print(table)


if __name__ == "__main__":
    main()
