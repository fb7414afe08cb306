"""Run folders as training leaves them, without training: true plans and ledgers, scores that a test chooses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.killable import make_config
from dpeq.config import RunConfig, write_config
from dpeq.data.cards import load_card
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.privacy import accounting
from dpeq.privacy.ledger import Ledger, read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.start import Start, settings_of

SIGMA = {1.0: 3.0, 8.0: 1.0, math.inf: 0.0}
STEPS, RATE, DELTA = 4, 0.25, 1e-3
DATA_SHA256 = "d6" * 32


@cache
def plan_at(epsilon: float, delta: float = DELTA) -> PrivacyPlan:
    """A plan that claims no less than Opacus' Renyi bound, which needs no accountant's process."""
    sigma = SIGMA[epsilon]
    spent = accounting.epsilon_rdp(RATE, sigma, STEPS, delta) if sigma else math.inf
    return PrivacyPlan(
        epsilon_target=epsilon,
        delta=delta,
        unit="image",
        sample_rate=RATE,
        steps=STEPS,
        expected_batch_size=8,
        noise_multiplier=sigma,
        max_grad_norm=1.0,
        public_units=32,
        accountant="rdp" if sigma else "none",
        epsilon={"rdp": spent} if sigma else {},
    )


@cache
def _utility() -> str:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4 // 3  # three in four are of the first class
    score = 1 / (1 + np.exp(-(rng.normal(size=40) + labels)))
    return json.dumps(evaluate_predictions(np.stack([1 - score, score], 1), labels, ("a", "b"), n_bootstrap=100))


def cell_config(
    room: Path, run: str, epsilon: float, *, seed: int | None = None, model: dict[str, Any] | None = None
) -> RunConfig:
    values = make_config(room, steps=STEPS, seed=seed).model_dump()
    values["name"] = run
    values["privacy"]["epsilon"] = epsilon
    if model:
        values["model"] = model
    return RunConfig.model_validate(values)


def lay_down(
    room: Path, config: RunConfig, *, auc: float = 0.9, finished: bool = True, steps: int = STEPS, **changes: Any
) -> Path:
    """A run folder ``room/<name>``; ``changes`` are of start.json (data_sha256) or of the plan (delta)."""
    folder = room / config.name
    folder.mkdir(parents=True)
    card = load_card(config.data.card)
    plan = plan_at(config.privacy.epsilon, changes.get("delta", DELTA))
    write_config(config, folder / "config.yaml")
    plan.write(folder / "plan.json")
    start = Start(
        run=Start.new_name(),
        command="dpeq train",
        started="2026-03-14T09:26:53+00:00",
        rng="os" if config.training.seed is None else "seeded",
        seed=config.training.seed,
        init_seed=1,
        plan_sha256=plan.sha256,
        data_sha256=changes.get("data_sha256", DATA_SHA256),
        settings=settings_of(config, card),
        versions={},
        machine={"training.threads": 1},
    )
    start.write(folder)
    with Ledger.create(folder / "ledger.jsonl", plan) as ledger:
        start.check_ledger(ledger)
        for step in range(1, steps + 1):
            ledger.spend(step)
    if finished:
        _finish(folder, config, plan, start, auc)
    return folder


def _finish(folder: Path, config: RunConfig, plan: PrivacyPlan, start: Start, auc: float) -> None:
    test = json.loads(_utility())
    test["auc"] = {"value": auc, "low": auc - 0.02, "high": auc + 0.02}
    test["accuracy"] = {"value": auc - 0.1, "low": auc - 0.15, "high": auc - 0.05}
    metrics = {"weights": "ema", "test": test, "val": test, "symmetry": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    data = {"name": "chaos", "title": "Made-up images", "sha256": start.data_sha256, "unit": "image"}
    run = {
        "command": "dpeq train",
        "started": start.started,
        "seconds": {"train": 60.0, "evaluate": 1.5},
        "versions": {},
        "rng": start.rng,
        "seed": start.seed,
        "non_private": not plan.private,
        "warnings": [],
        "log_private_metrics": False,
        "model": {"name": config.model.name, "group": config.model.group, "parameters": 1234},
        "data": {**data, "classes": ["a", "b"]},
    }
    (folder / "run.json").write_text(json.dumps(run))
    for name in ("report.html", "report.json"):
        (folder / name).touch()


def without_end(folder: Path) -> None:
    """Takes the note "end" from the ledger, as runs had none at first: weights and run.json are pinned no more."""
    *lines, last = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(last)["kind"] == "end"
    (folder / "ledger.jsonl").write_bytes(b"".join(lines))


def begun_with(folder: Path, **settings: Any) -> None:
    """The run as if it had begun with other ``settings`` ("evaluation__weights"): file by file, ledger and all."""
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in settings.items():
        *sections, key = name.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = Start.read(folder)
    start = replace(start, settings=start.settings | settings)
    start.write(folder)
    steps = read_ledger(folder / "ledger.jsonl").steps
    (folder / "ledger.jsonl").unlink()
    with Ledger.create(folder / "ledger.jsonl", PrivacyPlan.read(folder / "plan.json")) as ledger:
        start.check_ledger(ledger)
        for step in range(1, steps + 1):
            ledger.spend(step)
    for path in (folder / "checkpoints").glob("step-*"):
        path.unlink()
