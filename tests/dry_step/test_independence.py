"""Mixing of units is found by its effect; views of one unit may mix."""

import pytest
import torch
from dry_step.networks import SHAPE, Tail, Through, found
from torch import nn

from dpeq.dry_step.batch import MadeUpBatch
from dpeq.dry_step.independence import check_outputs


@pytest.mark.parametrize("views", [1, 2])
def test_mixing_is_found_by_its_effect_and_its_place_is_named(views):
    v = found(Tail(Through(lambda self, x: x - x.mean(0, keepdim=True))), views=views)
    assert "mixes the units of a batch in 'features.1'" in v[""].why
    assert v["classifier"].verdict == "refused"  # nothing could be checked
    assert "not examined" in v["classifier"].why


def test_views_of_one_unit_may_look_at_each_other():
    """The gradient of a unit is one; only other units' images must stay out of it."""
    model = Tail(Through(lambda self, x: x - x.view(-1, 2, *x.shape[1:]).mean(1).repeat_interleave(2, 0)))
    assert found(model, views=2)[""].verdict == "exact"


def test_memory_between_batches_is_refused():
    def remember(self, x):
        before, self.memory = getattr(self, "memory", 0), x.detach().mean()
        return x + before if self.training else x

    v = found(Tail(Through(remember)))
    assert "mixes units while it trains" in v[""].why


def test_random_layers_are_at_rest_while_gradients_are_compared():
    """Whatever their names."""
    noise = Through(lambda self, x: x * torch.rand_like(x) if self.training else x)
    assert found(Tail(noise))[""].verdict == "exact"


@pytest.mark.parametrize("target", [0, -1])
def test_random_layers_are_awake_when_units_are_held_apart_in_training(target):
    """Into the first unit or into the last, of which each stands for those on one side of the others."""

    def bleed(self, x):
        y = x.clone()
        if self.training:
            y[target] = y[target] + torch.rand(1) * x[len(x) // 2]
        return y

    assert "mixes units while it trains" in found(Tail(Through(bleed)))[""].why


def test_no_more_layers_rest_than_need_to():
    """Beside dropout, a layer that mixes in training is caught in the act, and named."""
    mix = Through(lambda self, x: x - x.mean(0, keepdim=True) if self.training else x)
    assert "mixes the units of a batch in 'features.2'" in found(Tail(nn.Dropout(0.5), mix))[""].why


def test_mixing_that_seldom_happens_is_met_under_one_of_several_seeds():
    def seldom(self, x):
        if not self.training:
            return x
        noisy = x * torch.rand_like(x)
        return noisy - noisy.mean(0, keepdim=True) if torch.rand(()) < 0.3 else noisy

    assert "mixes units while it trains" in found(Tail(Through(seldom)))[""].why


def test_calls_are_counted_in_one_pass():
    model = Tail(Through(lambda self, x: self.inner(self.inner(x)), nn.Tanh()))
    calls = check_outputs(model, MadeUpBatch.drawn(SHAPE, 3, views=1, units=2, device=torch.device("cpu")))
    assert (calls["features.1.inner"], calls["features.0"], calls[""]) == (2, 1, 1)
