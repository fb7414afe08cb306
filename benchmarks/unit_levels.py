"""The same data and network, protected patient by patient and image by image, with what each of them promises.

    python -m benchmarks.unit_levels --folder HANNOVER --json     # with hannover_64.npz and data.csv

Every run is the recipe ``hannover_cxr`` at the same target epsilon, sampling rate, steps and splits, one view per unit;
"patient, 4 images" lets a patient show up to four images per step. ``promise`` says what the guarantee comes to for a
patient with the most images in the published set: the patient-level one as it stands, the image-level one by group
privacy (Dong, Roth, Su 2019, Theorem 2.14: k images of a mu-GDP training are k*mu-GDP).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dpeq.config import load_config
from dpeq.data.index import index_folder
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.reporting.rundir import read_run
from dpeq.training.run import run

MOST_IMAGES = 22  # of one patient, as published
PUBLISHED = {"patient": 50, "image": 170}  # 70 % of 71 patients and of 243 images
LEVELS = {
    "patient, 1 image": ("patient", 1),
    "patient, 4 images": ("patient", 4),
    "image": ("image", 1),
}


def measure(folder: Path, epsilon: float, steps: int, seeds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as room:
        manifest = Path(room, "manifest.json")
        index_folder(
            folder, folder / "data.csv", manifest, classes=("ap", "pa"), label_column="projection", modality="X-ray"
        )
        for name, (unit, views) in LEVELS.items():
            found = []
            for seed in track(range(seeds), f"{name}:", console=Console(stderr=True), transient=True):
                config = load_config(
                    "hannover_cxr",
                    [
                        f"data.manifest={manifest}",
                        f"data.unit={unit}",
                        f"privacy.epsilon={epsilon}",
                        f"privacy.steps={steps}",
                        f"privacy.views={views}",
                        f"views.images_per_unit={views}",
                        f"privacy.public_units={PUBLISHED[unit]}",
                        f"privacy.expected_batch_size={PUBLISHED[unit] // 2}",
                        f"training.seed={seed}",
                        "tracking.tensorboard=false",
                    ],
                )
                found.append(read_run(run(config, out=Path(room, "runs"), command="benchmarks.unit_levels").folder))
            rows.append({"level": name, **_row(found, unit, views)})
    return rows


def _row(found: list[Any], unit: str, views: int) -> dict[str, Any]:
    plan = found[0].plan
    assert plan.mu is not None
    promise = plan.epsilon_target if unit == "patient" else gaussian_epsilon(MOST_IMAGES * plan.mu, plan.delta)
    tests = [one.metrics["test"] for one in found]
    return {
        "unit": unit,
        "views": views,
        "epsilon": plan.epsilon_target,
        "delta": plan.delta,
        "mu": plan.mu,
        "noise_multiplier": plan.noise_multiplier,
        "noise_over_batch": plan.noise_multiplier / plan.expected_batch_size,
        "promise": {"images": MOST_IMAGES, "epsilon": promise},
        "test_images": tests[0]["n"],
        "auc": [one["auc"]["value"] for one in tests],
        "auc_intervals": [[one["auc"]["low"], one["auc"]["high"]] for one in tests],
        "accuracy": [one["accuracy"]["value"] for one in tests],
        "majority_accuracy": tests[0]["majority_accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="with hannover_64.npz and data.csv")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = measure(arguments.folder, arguments.epsilon, arguments.steps, arguments.seeds)
    if arguments.json:
        print(json.dumps({"device": f"cpu: {platform.machine()}", "rows": rows}, indent=1))
        return
    table = Table()
    for heading in (
        "level",
        "epsilon of a unit",
        f"of a patient with {MOST_IMAGES} images",
        "noise / batch",
        "test AUC",
    ):
        table.add_column(heading)
    for row in rows:
        auc = f"{mean(row['auc']):.3f} ({min(row['auc']):.3f} to {max(row['auc']):.3f})"
        promise = f"{row['promise']['epsilon']:.4g}"
        table.add_row(row["level"], f"{row['epsilon']:g}", promise, f"{row['noise_over_batch']:.4f}", auc)
    Console().print(table)


if __name__ == "__main__":
    main()
