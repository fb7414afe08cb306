"""A finished run as training leaves it, at true constants: the epsilons are what the accountants answer for them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import cell_config, lay_down
from made_audits import step_audit, training_audit

from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.privacy import accounting
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A room with nothing beside it: the check of a summary looks for runs there, and other tests leave theirs."""
    room = tmp_path / "study" / "room"
    room.mkdir(parents=True)
    return room


PLAN = {
    "epsilon_target": 8.0,
    "delta": 1e-4,
    "unit": "patient",
    "sample_rate": 512 / 4708,
    "steps": 400,
    "expected_batch_size": 512,
    "noise_multiplier": 1.3895,
    "max_grad_norm": 1.0,
    "public_units": 4708,
    "views": 4,
    "neighbouring": "add_remove_one_unit",
    "sampling": "poisson",
    "clipping": "fixed",
    "accountant": "pld",
    "accountant_note": None,
    "mu": 1.937773,
    "epsilon": {
        "pld": 7.99761861393022,
        "prv_lower": 7.978038854396832,
        "prv_estimate": 7.996233839272068,
        "prv_upper": 8.014429316916406,
        "rdp": 8.833574034620622,
    },
}
OPEN_PLAN = PLAN | {"epsilon_target": "inf", "noise_multiplier": 0.0, "accountant": "none", "mu": None, "epsilon": {}}


def utility(shift: float = 2.2, *, seed: int = 0, n: int = 624) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) >= 0.375 * n).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + shift * (labels - 0.4))))
    return evaluate_predictions(np.stack([1 - score, score], 1), labels, ("normal", "pneumonia"), n_bootstrap=200)


SYMMETRY = {
    "group": "D4",
    "measured_on": "test images",
    "images": 64,
    "elements": [
        {"name": "quarter turn", "error": 1.2e-6, "agreement": 1.0},
        {"name": "reflection", "error": 0.9e-6, "agreement": 1.0},
    ],
    "worst_error": 1.2e-6,
    "agreement": 1.0,
    "note": "The group keeps the pixel grid, so only rounding is left.",
}


@cache
def _test() -> dict[str, Any]:
    return utility()


@cache
def _validation() -> dict[str, Any]:
    return utility(seed=1, n=524)


def run_facts(plan: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "dpeq train pipelines/pneumonia.yaml model.group=D4 privacy.epsilon=8",
        "started": "2026-03-14T09:26:53+00:00",
        "seconds": {"data": 2.1, "plan": 6.6, "train": 668.4, "evaluate": 3.2},
        "peak_memory_mib": 1843.5,
        "device": "cpu",
        "threads": 2,
        "seed": None,
        "rng": "os",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "opacus": "1.6.0", "escnn": "1.0.11", "monai": "1.6.1"},
        "dpeq": "0.1.0",
        "git": "621f47864e4d4a7c9f3f1b4b4c1fbb1c2d9a0e57",
        "platform": "Linux-6.1.0-x86_64",
        "stopped": None,
        "non_private": plan["epsilon_target"] == "inf",
        "warnings": [],
        "log_private_metrics": False,
        "model": {
            "name": "eqresnet9",
            "group": "D4",
            "parameters": 38207,
            "norm": "equivariant group norm",
            "norm_groups": 8,
            "fields": [3, 6, 13, 13],
            "restriction": None,
            "activation": "mish",
            "dim": 2,
            "input_shape": [1, 28, 28],
        },
        "data": {
            "name": "pneumoniamnist",
            "title": "PneumoniaMNIST",
            "card": {
                "source": "Kermany et al. 2018, by way of MedMNIST v2",
                "url": "medmnist.com",
                "licence": "CC BY 4.0",
                "modality": "chest X-ray",
                "symmetries": {
                    "laterality_matters": True,
                    "isotropic": True,
                    "orientation_matters": True,
                    "note": "Chest X-rays are upright; reflections exchange the side of the heart.",
                },
                "citation": "Yang et al., Scientific Data 10:41 (2023)",
            },
            "sha256": "d69af8c9d6d4c2b9d0c6b5ad4d4c5d3f9f3e7d1a5a9b2c4e6f8091a2b3c4d5e6",
            "unit": plan["unit"],
            "classes": ["normal", "pneumonia"],
            "counts": {
                "train": None,
                "val": {"images": 524, "units": 524},
                "test": {"images": 624, "units": 624},
            },
        },
    }


@pytest.fixture(scope="package", autouse=True)
def _accountants() -> Iterator[None]:
    """The same processes answer for all reports here; each would start its own otherwise, which takes seconds."""
    with accounting.session():
        yield


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    ledgers: dict[tuple[PrivacyPlan, int], bytes] = {}

    def make(
        *, plan: dict[str, Any] = PLAN, steps: int | None = None, metrics: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        """Writes a run; ``changes`` replace entries of run.json, or update them where both are dicts."""
        folder = tmp_path_factory.mktemp("runs") / "pneumonia-d4-eps8"
        folder.mkdir()
        (folder / "config.yaml").write_text("model: {group: D4}\n")
        frozen = PrivacyPlan.from_dict(plan)
        frozen.write(folder / "plan.json")
        count = plan["steps"] if steps is None else steps
        if (frozen, count) not in ledgers:  # a disk takes its time over every line
            with Ledger.create(folder / "ledger.jsonl", frozen) as ledger:
                for step in range(1, count + 1):
                    ledger.spend(step)
            ledgers[frozen, count] = (folder / "ledger.jsonl").read_bytes()
        (folder / "ledger.jsonl").write_bytes(ledgers[frozen, count])
        run = run_facts(plan)
        for key, value in changes.items():
            run[key] = run.get(key, {}) | value if isinstance(value, dict) else value
        (folder / "run.json").write_text(json.dumps(run))
        scores = metrics or {"weights": "ema", "test": _test(), "val": _validation(), "symmetry": SYMMETRY}
        (folder / "metrics.json").write_text(json.dumps(scores))
        return folder

    return make


@pytest.fixture(scope="session")
def private_run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture(scope="session")
def plan(private_run: Path) -> PrivacyPlan:
    return PrivacyPlan.read(private_run / "plan.json")


@pytest.fixture
def audit(plan: PrivacyPlan) -> dict[str, Any]:
    """The record of a step of ``private_run`` that was audited."""
    record: dict[str, Any] = json.loads(step_audit(plan))
    return record


@pytest.fixture
def audits(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Entries of a report for audits of ``private_run`` by every kind of attack that a report tells apart."""
    written = {
        "one-run": training_audit(plan, 1.5),
        "shadow": training_audit(plan, 0.5, judged=60, kind="member", shadows=8),
        "step": step_audit(plan),
        "step-coins": step_audit(plan, certain=False),
    }
    return [{"name": name, **json.loads(text)} for name, text in sorted(written.items())]


@pytest.fixture(scope="session")
def image_run(make_run: Callable[..., Path]) -> Path:
    return make_run(plan=PLAN | {"unit": "image"})


@pytest.fixture(scope="session")
def open_run(make_run: Callable[..., Path]) -> Path:
    scores = {"weights": "ema", "test": utility(3.0, seed=3)}
    return make_run(plan=OPEN_PLAN, metrics=scores, rng="seeded", seed=0)


@pytest.fixture(scope="session")
def report(private_run: Path, open_run: Path) -> dict[str, Any]:
    from dpeq.reporting.model import build_report

    return build_report(private_run, companion=open_run)


@pytest.fixture(scope="session")
def open_report(open_run: Path) -> dict[str, Any]:
    from dpeq.reporting.model import build_report

    return build_report(open_run)


def audits_of(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """One of each kind that the page tells apart, as a report lists them."""
    written = {
        "one-run": training_audit(plan, 0.8 * (plan.mu or 0.0)),
        "black-box": training_audit(plan, 0.1, kind="input"),
        "shadow": training_audit(plan, 0.5, judged=600, kind="member", shadows=8),
        "step": step_audit(plan),
    }
    return [{"name": name, **json.loads(text)} for name, text in sorted(written.items())]


def _score(value: float, spread: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": min(value + spread, 1.0)}


@pytest.fixture(scope="session")
def full_report(report: dict[str, Any]) -> dict[str, Any]:
    """:func:`report` with everything that a page can show: groups of patients, audits, images, energy."""
    groups = [
        {"value": "female", "n": 300, "patients": 280, "auc": _score(0.93), "accuracy": _score(0.88)},
        {"value": "male", "n": 290, "patients": 270, "auc": None, "accuracy": _score(0.85, 0.0)},
    ]
    rest = dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity", "average_precision"))
    groups = [{**group, **rest} for group in groups]
    subgroups = [
        {"attribute": "sex", "attribute_title": "Sex", "groups": groups, "withheld": 34, "note": "Few are withheld."},
        {"attribute": "site", "attribute_title": "Site", "groups": [], "withheld": 624, "note": "All are withheld."},
        {"attribute": "age_band", "attribute_title": "Age band", "groups": groups[:1], "withheld": 0, "note": ""},
    ]
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    image = {"png": png, "truth": "pneumonia", "answer": "normal", "probability": 0.91, "correct": False}
    full = report | {
        "utility": report["utility"] | {"subgroups": subgroups},
        "group_risk": report["risk"] | {"group": 4, "epsilon": "inf"},
        "audits": (audits := audits_of(PrivacyPlan.from_dict(report["plan"]))),
        "audit_trainings": sum(audit["details"]["trainings"] for audit in audits),
        "unfinished_audits": ["black-box-2", "step-2"],
        "images": {"consent": "whoever built the report says that they may be shown.", "items": [image] * 3},
        "resources": report["resources"] | {"energy": {"kwh": 0.0123, "basis": "a rule of thumb; not measured"}},
    }
    return json.loads(json.dumps(full))


@pytest.fixture(scope="session")
def full_page(full_report: dict[str, Any]) -> str:
    from dpeq.reporting.html import render_html

    return render_html(full_report)


@pytest.fixture(scope="session")
def summary_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of two networks, with and without privacy, and one that was begun."""
    room = tmp_path_factory.mktemp("runs") / "study" / "room"
    room.mkdir(parents=True)
    models = {"eqresnet9-d4": {"name": "eqresnet9", "group": "D4"}, "cnn-twin": {"name": "cnn", "match": "eqresnet9"}}
    aucs = iter((0.91, 0.93, 0.95, 0.96, 0.80, 0.81, 0.85, 0.89))
    for model, section in models.items():
        for epsilon in (8.0, math.inf):
            for k in (1, 2):
                name = f"x-{model}-eps{epsilon:g}-{k}"
                lay_down(room, cell_config(room, name, epsilon, model=section), auc=next(aucs))
    lay_down(room, cell_config(room, "x-begun-1", 1.0), finished=False, steps=2)
    report = room / "reports" / "x-cnn-twin-eps8-1" / "report.html"
    report.parent.mkdir(parents=True)
    report.touch()
    return room


@pytest.fixture(scope="session")
def summarised(summary_room: Path) -> dict[str, Any]:
    from dpeq.reporting.summary import build_summary

    with accounting.session("pld", "rdp"):
        runs = sorted(path.parent for path in summary_room.glob("*/ledger.jsonl"))
        return build_summary(runs, below=summary_room / "reports")


@pytest.fixture(scope="session")
def summary_page(summarised: dict[str, Any]) -> str:
    from dpeq.reporting.summary_html import render_summary

    return render_summary(summarised)
