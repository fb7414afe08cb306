"""How to spend four times the arithmetic: depth, width, resolution or a larger group? The family's compound factors.

    python -m benchmarks.scaling_grid --seeds 0 1 2 --data-root /data --json

EfficientNet's first step (Tan & Le 2019, section 3.3), with the order of the group as a fourth dimension and private
training as the judge: from the base network, every combination of the factors below whose multiply-accumulates come to
four times the base's within 15 % is trained under one plan (epsilon 8), and judged by the cross-entropy on the
validation split. Four times is two units of the compound coefficient, so the winner's factors are squares of the
family's. Trainings that are in ``--cache`` already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import log_loss, roc_auc_score

from dpeq.config import load_config
from dpeq.data.images import ImageSet
from dpeq.evaluation.cases import cases_of
from dpeq.evaluation.predict import predict_cases
from dpeq.models.cost import count_macs
from dpeq.models.family import BASE, Compound, FamilySpec, scaled
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import train
from dpeq.training.run import load_data, make_plan, optimizer_settings, prepare
from dpeq.training.state import OptimizerSettings

DEPTHS, WIDTHS, RESOLUTIONS, ORDERS = (1.0, 1.4, 2.0), (1.0, 1.25, 1.5, 2.0, 2.5), (1.0, 1.2, 1.4), (1.0, 2.0, 4.0)
BUDGET, TOLERANCE = 4.0, 0.15
STEPS, BATCH = 80, 256


@dataclass(frozen=True)
class Candidate:
    """Factors over the base network, and the network they give."""

    depth: float
    width: float
    resolution: float
    order: float

    @property
    def spec(self) -> FamilySpec:
        return scaled(1.0, 2, compound=Compound(self.depth, self.width, self.resolution, self.order))

    @property
    def name(self) -> str:
        return "-".join(f"{value:g}" for value in asdict(self).values())


def candidates(shape: tuple[int, ...]) -> tuple[int, list[Candidate]]:
    """The base's multiply-accumulates, and all combinations within the budget; the same network is taken once."""
    base = count_macs(scaled(0.0, 2).build(1, 2), shape)
    found: dict[FamilySpec, Candidate] = {}
    for factors in product(DEPTHS, WIDTHS, RESOLUTIONS, ORDERS):
        candidate = Candidate(*factors)
        macs = count_macs(candidate.spec.build(1, 2), shape)
        if abs(macs / base / BUDGET - 1) <= TOLERANCE:
            found.setdefault(candidate.spec, candidate)
    return base, list(found.values())


def train_once(
    spec: FamilySpec, splits: dict[str, ImageSet], plan: PrivacyPlan, settings: OptimizerSettings, seed: int
) -> dict[str, float]:
    """Scores of the averaged weights on the validation split, and on the test split for the record."""
    torch.manual_seed(seed)
    device = torch.device("cpu")
    model = spec.build(splits["train"].images.shape[1], len(splits["train"].classes))
    with tempfile.TemporaryDirectory() as folder, Ledger.create(Path(folder) / "ledger.jsonl", plan) as ledger:
        result = train(model, splits["train"], plan, ledger, settings, Randomness.create(seed), device=device)
    scores = {"seconds": result.seconds}
    for split in ("val", "test"):
        cases = cases_of(splits[split])
        probabilities = predict_cases(result.averaged, splits[split], cases, device=device)
        scores[f"{split}_loss"] = float(log_loss(cases.labels, probabilities))
        scores[f"{split}_auc"] = float(roc_auc_score(cases.labels, probabilities[:, 1]))
    return scores


def measure(seeds: list[int], cache: Path, data_root: Path | None) -> list[dict[str, Any]]:
    overrides = [f"privacy.steps={STEPS}", f"privacy.expected_batch_size={BATCH}"]
    config = load_config("pneumoniamnist", overrides, data_root=data_root)
    prepared = prepare(config)
    plan, splits = make_plan(prepared), load_data(prepared)
    settings = optimizer_settings(config)
    base, all_ = candidates(prepared.shape)
    rows = []
    for candidate in track([Candidate(1.0, 1.0, 1.0, 1.0), *all_], "training", console=Console(stderr=True)):
        found = []
        for seed in seeds:
            file = cache / f"{candidate.name}-{seed}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(train_once(candidate.spec, splits, plan, settings, seed)))
            found.append(json.loads(file.read_text()))
        spec = candidate.spec
        rows.append(
            {
                "factors": asdict(candidate),
                "group": spec.group,
                "fields": list(spec.fields),
                "depths": list(spec.depths),
                "resolution": spec.resolution,
                "parameters": sum(p.numel() for p in spec.build(1, 2).parameters()),
                "macs_over_base": count_macs(spec.build(1, 2), prepared.shape) / base,
                **{key: statistics.fmean(f[key] for f in found) for key in found[0]},
                "val_losses": [f["val_loss"] for f in found],
                "seeds": len(seeds),
            }
        )
    return rows[:1] + sorted(rows[1:], key=lambda row: row["val_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compound factors of the family by a small grid.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--cache", type=Path, default=Path("runs/scaling_grid"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.seeds, options.cache, options.data_root)
    if options.json:
        device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
        print(json.dumps({"device": device, "base": asdict(BASE), "rows": rows}, indent=1))
        return
    table = Table("depth", "width", "resolution", "order", "group", "parameters", "x MACs", "val loss", "test AUC")
    for row in rows:
        factors = [f"{value:g}" for value in row["factors"].values()]
        numbers = (f"{row['macs_over_base']:.2f}", f"{row['val_loss']:.3f}", f"{row['test_auc']:.3f}")
        table.add_row(*factors, row["group"], f"{row['parameters']:,}", *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
