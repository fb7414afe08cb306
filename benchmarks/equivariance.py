"""How exactly whole networks keep each group's symmetry: on the grid, and turned by 45 degrees off it.

    python -m benchmarks.equivariance --json

Freshly initialised networks of the family with each group, full blocks and (where the group keeps the grid) separable
ones. On the grid: the largest change of a logit over all elements, relative to the largest logit. Off it: the change of
the logits when a smooth image is sampled at 45 degrees, beside the error that bilinear interpolation makes in turning
the image itself (see :mod:`dpeq.testing`); a conventional network of the same blocks stands beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dpeq.groups import GROUP_NAMES, group
from dpeq.models.family import FamilySpec
from dpeq.nn.fields import FieldType
from dpeq.testing import eighth_turns, equivariance_errors, exact_error

SPATIAL = {2: (28, 28), 3: (10, 10, 10)}
OFF_GRID_3D = (20, 20, 6)


def row(name: str, block: str, seeds: int, judged: str | None = None) -> dict[str, Any]:
    """Errors of one network, the worst and the mean over seeds; ``judged`` names another group to be judged by."""
    whole = group(judged or name)
    spatial = SPATIAL[whole.dim] if whole.on_grid or whole.dim == 2 else OFF_GRID_3D
    fields = (4, 8, 8) if len(group(name).elements) > 1 else (16, 32, 32)
    exact, turned, interpolation = [], [], 0.0
    for seed in range(seeds):
        torch.manual_seed(seed)
        spec = FamilySpec(name, "none", fields, (1, 1, 1), (1, 1, 1), block)  # type: ignore[arg-type]
        model = spec.build(1, 10).eval()
        image = FieldType(whole, "trivial", 1)
        if judged is None:
            exact.append(exact_error(model, image, None, spatial)[0])
        for element in [] if whole.on_grid else eighth_turns(whole):
            error, interpolation = equivariance_errors(model, image, None, spatial, element)
            turned.append(error)
    return {
        "group": name,
        "judged_as": whole.name,
        "block": block,
        "spatial": list(spatial),
        "exact_error": max(exact, default=None),
        "error_at_45": statistics.fmean(turned) if turned else None,
        "worst_at_45": max(turned, default=None),
        "interpolation_at_45": interpolation if turned else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Equivariance errors of whole networks, by group.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = [(name, "full", None) for name in GROUP_NAMES if len(group(name).elements) > 1]
    wanted += [(name, "separable", None) for name, _, _ in wanted if group(name).on_grid]
    wanted += [("trivial", "full", "C8"), ("C4", "full", "C8")]
    rows = [row(*one[:2], options.seeds, one[2]) for one in track(wanted, "measuring", console=Console(stderr=True))]
    if options.json:
        print(json.dumps({"torch": torch.__version__, "seeds": options.seeds, "rows": rows}, indent=1))
        return
    table = Table("group", "judged as", "block", "on the grid", "at 45 degrees (worst)", "interpolation")
    for r in rows:
        exact = "" if r["exact_error"] is None else f"{r['exact_error']:.1e}"
        turned = "" if r["error_at_45"] is None else f"{r['error_at_45']:.2%} ({r['worst_at_45']:.2%})"
        interpolation = "" if r["interpolation_at_45"] is None else f"{r['interpolation_at_45']:.2%}"
        table.add_row(r["group"], r["judged_as"], r["block"], exact, turned, interpolation)
    Console().print(table)


if __name__ == "__main__":
    main()
