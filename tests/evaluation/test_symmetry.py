import math

import numpy as np
import pytest
import torch
from torch import nn

from dpeq.evaluation.symmetry import MOST_IMAGES, measure_symmetry
from dpeq.models.registry import ModelChoice, build_model, resolve_spec

CPU = torch.device("cpu")


def network(name: str, shape: tuple[int, ...], **choice):
    spec = resolve_spec(ModelChoice(name, **choice), shape, 3)
    return spec, build_model(spec, shape[0], 3, seed=0)


def images(*shape: int, n: int = 12) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


class Weigh(nn.Module):
    """Two logits that are weighted sums over the pixels."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x):
        first = (x * self.weights).flatten(1).sum(1)
        return torch.stack([first, torch.zeros_like(first)], dim=1)


@pytest.mark.parametrize(
    ("name", "shape", "choice", "found", "elements"),
    [
        ("eqresnet9-small", (1, 16, 16), {"group": "D4", "restriction": "none"}, "D4", 7),
        ("eqnet-3d-xs", (1, 8, 8, 8), {"group": "axial-C4"}, "axial-C4", 3),
        ("eqnet-3d-xs", (1, 8, 8, 8), {"group": "O", "fields": (2, 2, 2)}, "O", 23),
    ],
)
def test_an_exact_network_is_exact(name, shape, choice, found, elements):
    spec, model = network(name, shape, **choice)
    out = measure_symmetry(model, images(*shape), spec.group, spec.restriction, device=CPU)
    assert (out["group"], out["measured_on"], len(out["elements"])) == (found, found, elements)
    assert len({row["name"] for row in out["elements"]}) == elements
    assert out["worst_error"] < 1e-4
    assert out["agreement"] == 1
    assert out["images"] == 12


class Weighted(nn.Module):
    """Images times a ramp."""

    def __init__(self, ramp: torch.Tensor) -> None:
        super().__init__()
        self.ramp = ramp

    def forward(self, x):
        return x * self.ramp


def test_a_network_that_is_broken_is_noticed():
    """A first layer that tells left from right, by one per cent."""
    spec, model = network("eqresnet9-small", (1, 16, 16), group="D4", restriction="none")
    ramp = 1 + 0.01 * torch.linspace(-1, 1, 16)
    broken = nn.Sequential(Weighted(ramp), model)
    out = measure_symmetry(broken, images(1, 16, 16), spec.group, spec.restriction, device=CPU)
    assert out["worst_error"] > 1e-3
    upside_down = next(r for r in out["elements"] if r["name"] == "mirror left to right, then rotation by 180 degrees")
    assert upside_down["error"] < 1e-4, "the ramp runs from left to right"


def test_a_conventional_network_is_measured_under_quarter_turns():
    spec, model = network("cnn", (1, 16, 16), match="eqresnet9-small")
    out = measure_symmetry(model, images(1, 16, 16), spec.group, spec.restriction, device=CPU)
    assert (out["group"], out["measured_on"]) == (None, "C4")
    assert [row["name"] for row in out["elements"]] == [f"rotation by {angle} degrees" for angle in (90, 180, 270)]
    assert out["worst_error"] > 0.1
    assert "conventional" in out["note"]
    volumes = measure_symmetry(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), images(1, 4, 4, 4), "trivial-3d", device=CPU
    )
    assert volumes["measured_on"] == "axial-C4"
    assert volumes["elements"][0]["name"] == "rotation by 90 degrees about the scan axis"


def test_a_restricted_network_is_held_to_what_it_keeps():
    spec, model = network("eqresnet9-small", (1, 16, 16))
    assert (spec.group, spec.restriction) == ("D4", "halved")
    out = measure_symmetry(model, images(1, 16, 16), spec.group, spec.restriction, device=CPU)
    assert (out["group"], out["measured_on"], len(out["elements"])) == ("D2", "D2", 3)
    assert out["worst_error"] < 1e-4
    assert "D4" in out["note"]
    assert measure_symmetry(model, images(1, 16, 16), "D4", device=CPU)["worst_error"] > 1e-2
    dropped = measure_symmetry(model, images(1, 16, 16), "D4", "invariant", device=CPU)
    assert (dropped["group"], dropped["measured_on"]) == (None, "C4")
    assert "drops all symmetry" in dropped["note"]


@pytest.mark.parametrize(
    ("name", "shape", "measured"),
    [
        ("C8", (6, 6), "C4"),
        ("D8", (6, 6), "D4"),
        ("SO2", (6, 6), "C4"),
        ("O2", (6, 6), "D4"),
        ("axial-SO2", (4, 4, 6), "axial-C4"),
        ("D4", (4, 6), "D2"),
        ("C4", (4, 6), "C2"),
        ("O", (4, 4, 6), "8 elements of O"),
    ],
)
def test_elements_that_change_the_grid_are_left_out_and_the_note_says_so(name, shape, measured):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2))
    out = measure_symmetry(model, images(1, *shape), name, device=CPU)
    assert (out["group"], out["measured_on"]) == (name, measured)
    reason = "different length" if name in ("D4", "C4", "O") else "pixel grid"
    assert reason in out["note"]


def test_the_error_is_relative_to_how_far_images_differ():
    """By hand: with logits (sum of w x, 0), less their mean, distances are those of the first logit over sqrt(2)."""
    weights = torch.zeros(1, 4, 4)
    weights[0, 0, 0] = 1.0
    x = images(1, 4, 4, n=6)
    out = measure_symmetry(Weigh(weights), x, "C2", device=CPU)
    before, after = x[:, 0, 0, 0].double().numpy(), x[:, 0, 3, 3].double().numpy()
    errors = np.abs(after - before) / before.std()
    assert out["elements"][0]["error"] == pytest.approx(errors.mean())
    assert out["worst_error"] == pytest.approx(errors.max())
    assert out["agreement"] == np.mean((before >= 0) == (after >= 0))


def test_a_shift_of_all_logits_and_a_bias_change_nothing():
    class Shifted(Weigh):
        def forward(self, x):
            return super().forward(x) + x.flatten(1)[:, :1] + torch.tensor([0.0, 50.0])

    weights = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = images(1, 4, 4, n=6)
    plain, shifted = (measure_symmetry(m, x, "C4", device=CPU) for m in (Weigh(weights), Shifted(weights)))
    assert shifted["worst_error"] == pytest.approx(plain["worst_error"], rel=1e-4)


def test_agreement_counts_images_that_keep_their_class_under_every_element():
    """One corner decides: each of the turns shows another one."""
    weights = torch.zeros(1, 2, 2)
    weights[0, 0, 0] = 1.0
    x = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1], [1, 1, 1, -1]]).view(4, 1, 2, 2)
    out = measure_symmetry(Weigh(weights), x, "C4", device=CPU)
    assert [row["agreement"] for row in out["elements"]] == [0.75] * 3
    assert out["agreement"] == 0.25


def test_a_network_that_says_the_same_of_all_images_is_not_called_asymmetric():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([2.0, 1.0]) + 1e-7 * x.flatten(1)[:, :2]

    out = measure_symmetry(Constant(), images(1, 4, 4), "C4", device=CPU)
    assert out["worst_error"] < 1e-2
    silent = measure_symmetry(Weigh(torch.zeros(1, 4, 4)), images(1, 4, 4), "C4", device=CPU)
    assert silent["worst_error"] == 0


def test_few_images_of_many_are_taken_and_fewer_for_a_large_group():
    seen = []

    class Counting(nn.Module):
        def forward(self, x):
            seen.append(x[:, 0, 0, 0, 0])
            return x.flatten(1)[:, :2]

    x = torch.arange(600.0).view(600, 1, 1, 1, 1).expand(600, 1, 2, 2, 2)
    out = measure_symmetry(Counting(), x, "mirror", device=CPU)
    first = torch.cat(seen)[:MOST_IMAGES]
    assert out["images"] == MOST_IMAGES
    assert (first[0], first[-1]) == (0.0, 599.0)
    assert len(first.unique()) == MOST_IMAGES
    assert measure_symmetry(Counting(), x, "Oh", device=CPU)["images"] == 2048 // 48


def test_a_network_in_training_is_measured_as_it_is_used():
    """Dropout would change the logits by itself."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), Mean()).train()
    out = measure_symmetry(model, images(1, 4, 4), "D4", device=CPU)
    assert out["worst_error"] < 1e-4


class Mean(nn.Module):
    def forward(self, x):
        return torch.stack([x.mean(1), -x.mean(1)], dim=1)
