"""Twins hit the size they are matched to, counted independently of the search."""

import time

import pytest
import torch
from torch import nn

from dpeq.errors import ConfigError
from dpeq.models.cost import count_macs
from dpeq.models.family import scaled
from dpeq.models.matching import KINDS, match
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec

TARGETS = {
    "2d": (ResNet9Spec("D4", "halved", (3, 6, 12), (1, 1, 1)), (1, 28, 28)),
    "3d": (ResNet9Spec("axial-D4", "none", (1, 2, 4), (1, 1, 1), stem_pool=True), (1, 16, 24, 8)),
    "separable": (scaled(2, 2), (1, 28, 28)),
    "continuous": (ResNet9Spec("SO2", "none", (2, 3, 3), (1, 1, 1)), (1, 28, 28)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_twins_have_the_parameters_of_their_target(target, kind):
    spec, shape = TARGETS[target]
    twin = match(kind, spec, shape[0], 3, shape)
    counted = [sum(p.numel() for p in s.build(shape[0], 3).parameters()) for s in (spec, twin)]
    assert counted[1] == pytest.approx(counted[0], rel=0.05)
    assert (twin.dim, twin.restriction) == (spec.dim, "none")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_twins_have_the_multiply_accumulates_of_their_target(target, kind):
    spec, shape = TARGETS[target]
    twin = match(kind, spec, shape[0], 3, shape, by="macs")
    counted = [count_macs(s.build(shape[0], 3), shape) for s in (spec, twin)]
    assert counted[1] == pytest.approx(counted[0], rel=0.10)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", ["wide-resnet", "vit"])
def test_every_size_from_ten_thousand_to_three_million_is_reached(dim, kind):
    class OfSize:
        def __init__(self, parameters: int):
            self.dim, self.parameters = dim, parameters

        def build(self, in_channels: int, classes: int) -> nn.Module:
            return nn.Linear(self.parameters, 1, bias=False)

    shape = (1, 28, 28) if dim == 2 else (1, 32, 24, 16)
    for size in (10_007, 31_000, 98_765, 654_321, 2_900_000):
        twin = match(kind, OfSize(size), 1, 2, shape)
        found = sum(p.numel() for p in twin.build(1, 2).to("meta").parameters())
        assert found == pytest.approx(size, rel=0.05)


def test_matching_is_fast_and_leaves_the_random_state_alone():
    spec, shape = TARGETS["2d"]
    match("cnn", spec, 1, 3, shape)  # its basis is built once
    before, started = torch.random.get_rng_state(), time.process_time()
    for kind in KINDS:
        match(kind, spec, 1, 3, shape)
    assert time.process_time() - started < 4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_size_that_cannot_be_reached_names_the_nearest():
    class Tiny:
        dim = 2

        def build(self, in_channels: int, classes: int) -> nn.Module:
            return nn.Linear(10, 1)

    with pytest.raises(ConfigError, match=r"No vit twin has within 5% of 11 parameters; the nearest has [\d,]+"):
        match("vit", Tiny(), 1, 2, (1, 28, 28))


def test_a_twin_matches_any_target_not_only_equivariant_ones():
    target = ViTSpec(2, (28, 28), 4, 32, 4, 4, 64)
    twin = match("wide-resnet", target, 1, 2, (1, 28, 28))
    assert isinstance(twin, WideResNetSpec)
    with pytest.raises(ConfigError, match="no symmetry"):
        match("cnn", target, 1, 2, (1, 28, 28))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mlp"}, "no twin 'mlp'; use one of: cnn, wide-resnet, vit"),
        ({"by": "time"}, "cannot be matched by 'time'; use one of: parameters, macs"),
        ({"input_shape": (1, 28, 28, 28)}, r"shape \[1, 28, 28, 28\] do not go with a 2D network"),
        ({"input_shape": (3, 28, 28)}, "of 1 channels"),
    ],
)
def test_impossible_matches_are_refused(arguments, message):
    good = {"kind": "vit", "target": WideResNetSpec(2), "in_channels": 1, "classes": 2, "input_shape": (1, 28, 28)}
    with pytest.raises(ConfigError, match=message):
        match(**(good | arguments))
