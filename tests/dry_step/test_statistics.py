"""Layers that keep statistics are refused, and everything else is examined without them."""

import pytest
import torch
from dry_step.networks import Tail, found
from torch import nn

from dpeq.dry_step.statistics import set_statistics_aside


def test_batch_norm_is_refused_with_a_group_norm_that_fits_everywhere():
    """And everything else is examined without it."""
    v = found(Tail(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))
    assert {name for name, one in v.items() if not one.trains} == {"", "features.1", "features.3"}
    assert "mixes the units" in v["features.1"].why
    assert 'norm=("group", {"num_groups": 2})' in v["features.1"].mend  # divides 4 and 6
    assert "ModuleValidator.fix" in v["features.1"].mend
    assert "2 of 6 layers stand in the way: features.1, features.3" in v[""].why
    assert v["features.2"].verdict == "exact"


def test_running_statistics_and_other_buffers_are_refused():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            return x * self.scale

    v = found(Tail(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), Constant()))
    assert v["features.1"].verdict == v["features.2"].verdict == "refused"
    assert "running_mean, running_var" in v["features.1"].why
    assert "track_running_stats=False" in v["features.1"].mend
    assert "plain attributes" in v["features.2"].mend
    assert v["features.0"].verdict == v["classifier"].verdict == "exact"


@pytest.mark.parametrize(
    ("channels", "groups"), [((12, 18), 6), ((16, 32), 8), ((24, 36), 6), ((5,), 5), ((7, 3), 1), ((11,), 1)]
)
def test_one_number_of_groups_serves_every_batch_norm(channels, groups):
    model = nn.Sequential(*(nn.BatchNorm2d(c) for c in channels))
    mends = {one.mend for one in set_statistics_aside(model).values()}
    assert [f'"num_groups": {groups}}}' in mend for mend in mends] == [True]
    assert not list(model.buffers())
    assert all(isinstance(layer, nn.GroupNorm) for layer in model)


def test_a_network_without_statistics_is_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
    layers = list(model)
    assert set_statistics_aside(model) == {}
    assert all(now is before for now, before in zip(model, layers, strict=True))
