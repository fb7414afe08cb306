from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import relative_error, unit_gradients_by_autograd
from pydantic import ValidationError
from torch import nn

from dpeq import groups
from dpeq.data.augment import AugmentConfig, redundant
from dpeq.data.views import Augment
from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES, group
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.privacy.randomness import Randomness


def gradients_differ(model: nn.Module, x: torch.Tensor, moved: torch.Tensor) -> float:
    """The largest difference between the per-unit gradients, relative to each parameter's largest one."""
    y = torch.arange(len(x)) % 2
    before, after = unit_gradients_by_autograd(model, x, y), unit_gradients_by_autograd(model, moved, y)
    return max(relative_error(after[name], before[name]) for name in before)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(3, 1, *shape, generator=torch.Generator().manual_seed(11))


def network(name: str, restriction: str = "none") -> nn.Module:
    return build_model(ResNet9Spec(name, restriction, (1, 2, 2), (1, 1, 1)), 1, 2, seed=0)


@pytest.mark.parametrize(
    ("name", "restriction", "redundant_moves"),
    [
        ("trivial", "none", set()),
        ("C2", "none", set()),
        ("C4", "none", {"turn"}),
        ("D1", "none", {"x"}),
        ("D2", "none", {"x", "y"}),
        ("D4", "none", {"x", "y", "turn"}),
        ("D4", "halved", {"x", "y"}),
        ("D4", "C4", {"turn"}),
        ("D4", "invariant", set()),
        ("C8", "none", {"turn"}),
        ("SO2", "none", {"turn"}),
        ("mirror", "none", {"x"}),
        ("axial-C4", "none", {"turn"}),
        ("axial-D4", "none", {"x", "y", "turn"}),
        ("axial-D4", "reflection", {"x"}),
        ("O", "none", {"turn"}),
        ("Oh", "none", {"x", "y", "z", "turn"}),
    ],
)
def test_a_view_is_called_a_waste_exactly_when_networks_give_it_the_same_gradient(name, restriction, redundant_moves):
    dim = group(name).dim
    model = network(name, restriction)
    x = images(12, 12) if dim == 2 else images(8, 8, 8)
    settings = {axis: AugmentConfig(flip=(axis,)) for axis in "xyz"[:dim]} | {"turn": AugmentConfig(quarter_turns=True)}
    for move, config in settings.items():
        augment = Augment(config, dim)
        draws = augment.draw(Randomness.create(0).stream("views", 3), 40)
        moves = augment.moves(draws)
        rows = (moves.flip.any(1) | (moves.quarters % 2 == 1)).nonzero()[:3, 0]
        difference = gradients_differ(model, x, augment(x, draws[rows]))
        assert (difference < 1e-3) == (move in redundant_moves), f"{move}: {difference}"
        assert difference < 1e-3 or difference > 0.03, f"{move}: {difference} is neither"
        sentences = redundant(config, name, restriction)
        assert len([s for s in sentences if " is a waste: " in s]) == (move in redundant_moves), sentences


def test_the_registered_network_repeats_gradients_as_told():
    """The reference's preset: D4, halved to D2 in the last stage."""
    spec = resolve_spec(ModelChoice("eqresnet9-small"), (1, 28, 28), 2)
    model = build_model(spec, 1, 2, seed=0)
    told = redundant(AugmentConfig(flip=("x", "y"), quarter_turns=True), spec.group, spec.restriction)
    assert told == [
        "Mirroring along x is a waste: the logits of a network with group D4 restricted to D2 ignore it, so the view "
        "repeats a gradient; take x out of augment.flip.",
        "Mirroring along y is a waste: the logits of a network with group D4 restricted to D2 ignore it, so the view "
        "repeats a gradient; take y out of augment.flip.",
        "Of the 4 moves of augment.quarter_turns 2 are a waste: a network with group D4 restricted to D2 gives them "
        "the gradients of the others; ask for fewer, or for a smaller group.",
    ]
    x = images(28, 28)
    assert gradients_differ(model, x, x.flip(3)) < 1e-4
    assert gradients_differ(model, x, x.rot90(2, (2, 3))) < 1e-4
    assert gradients_differ(model, x, x.rot90(1, (2, 3))) > 0.1


def test_a_waste_beside_other_views_is_a_waste_too(monkeypatch):
    """A mirrored image moved to the right teaches what the image moved to the left does; both are as likely."""
    model = network("D1")
    augment = Augment(AugmentConfig(shift=3, rotate=20, flip=("x",)), 2)
    draws = augment.draw(Randomness.create(0).stream("views", 1), 3)
    moves = augment.moves(draws)
    twins = replace(moves, flip=moves.flip ^ torch.tensor([False, True]), shift=moves.shift * torch.tensor([1, -1]))
    twins = replace(twins, angles=-moves.angles)
    x = images(12, 12)
    shown = augment(x, draws)
    monkeypatch.setattr(augment, "moves", lambda draws: twins)
    assert not torch.allclose(augment(x, draws), shown, atol=0.1)
    assert gradients_differ(model, shown, augment(x, draws)) < 1e-3


def test_combinations_are_counted():
    turns, both = AugmentConfig(quarter_turns=True), AugmentConfig(flip=("x", "y"))
    (half,) = redundant(turns, "C2")
    assert "Of the 4 moves of augment.quarter_turns 2 are a waste" in half
    (half,) = redundant(both, "C2")
    assert "Of the 4 moves of augment.flip x and y 2 are a waste" in half
    everything = AugmentConfig(flip=("x", "y"), quarter_turns=True)
    assert "Of the 8 moves of augment.flip x and y with augment.quarter_turns 4 are" in redundant(everything, "C2")[0]
    mirrors, rest = redundant(everything, "D1")
    assert "Mirroring along x" in mirrors
    assert "Of the 8 moves of augment.flip y with augment.quarter_turns 4 are a waste" in rest
    # Without any symmetry, mirrors of x and y and a half turn still are three names of two moves; nothing is wasted.
    assert redundant(everything, "trivial") == []
    assert redundant(both, "mirror") == redundant(AugmentConfig(flip=("x",)), "mirror")
    model, x = network("C2"), images(12, 12)
    assert gradients_differ(model, x, x.flip((2, 3))) < 1e-4
    assert gradients_differ(model, x.flip(2), x.flip(3)) < 1e-4
    assert gradients_differ(model, x, x.flip(2)) > 0.1


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_only_moves_of_whole_pixels_are_called_a_waste(name):
    config = AugmentConfig(shift=4, rotate=180, scale=0.1, brightness=0.1, contrast=0.1, noise=0.1)
    assert redundant(config, name) == redundant(config, group(name)) == []
    assert redundant(AugmentConfig(), name) == []


def test_thirds_of_a_turn_are_not_taken_for_quarters(monkeypatch):
    monkeypatch.setitem(groups._GROUPS, "C3", groups.SymmetryGroup("C3", 2, 3, False))
    assert redundant(AugmentConfig(quarter_turns=True), "C3") == []


def test_what_does_not_fit_the_group_is_refused():
    with pytest.raises(ConfigError, match="axis z"):
        redundant(AugmentConfig(flip=("z",)), "D4")
    with pytest.raises(ConfigError, match="no restriction"):
        redundant(AugmentConfig(), "C4", "reflection")
    with pytest.raises(ConfigError, match="Unknown symmetry group"):
        redundant(AugmentConfig(), "D5")


def test_everything_is_off_by_default():
    config = AugmentConfig()
    assert config.off
    assert not config.interpolates
    for name, value in {
        "shift": 1, "rotate": 1.0, "tilt": 1.0, "scale": 0.1, "flip": ("x",), "quarter_turns": True,
        "brightness": 0.1, "contrast": 0.1, "noise": 0.1, "transforms": ({"name": "RandGaussianNoise"},),
    }.items():  # fmt: skip
        changed = AugmentConfig.model_validate({name: value})
        assert not changed.off
        assert changed.interpolates == (name in ("rotate", "tilt", "scale"))
        assert AugmentConfig.model_validate(changed.model_dump(mode="json")) == changed
    assert set(AugmentConfig.model_fields) == {
        "shift", "rotate", "tilt", "scale", "flip", "quarter_turns", "brightness", "contrast", "noise",
        "transforms",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shift": -1}, "greater than or equal to 0"),
        ({"shift": 1.5}, "valid integer"),
        ({"rotate": 181}, "less than or equal to 180"),
        ({"tilt": -1}, "greater than or equal to 0"),
        ({"scale": 1.0}, "less than 1"),
        ({"contrast": 1.0}, "less than 1"),
        ({"brightness": float("inf")}, "finite number"),
        ({"noise": float("nan")}, "(?:finite number|greater than)"),
        ({"noise": -0.1}, "greater than or equal to 0"),
        ({"flip": ["w"]}, "'x', 'y' or 'z'"),
        ({"flip": ["x", "x"]}, "Input should name each axis once"),
        ({"crop": 4}, "Extra inputs are not permitted"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        AugmentConfig.model_validate(values)


def test_settings_need_no_torch():
    code = "import sys, dpeq.data.augment; print([m for m in ('torch', 'numpy', 'monai') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
