"""What is seen of a forward pass: who ran, how often, what went in and out, and who mixed."""

import pytest
import torch
from dry_step.networks import Through
from torch import nn

from dpeq.dry_step.trace import Trace, first_to_mix, near, tensors_in


def watched(model, x):
    with Trace(model, keep=True) as trace:
        trace.output = tensors_in(model(x))
    return trace


def test_a_pass_is_seen_from_the_inside_out_and_leaves_no_hooks():
    twice = Through(lambda self, x: self.inner(self.inner(x)), nn.Linear(2, 2))
    model = nn.Sequential(twice, nn.ReLU(inplace=True))
    x = torch.randn(3, 2)
    trace = watched(model, x)
    assert trace.calls == {"0.inner": 2, "0": 1, "1": 1, "": 1}
    assert [name for name, _, _ in trace.seen] == ["0.inner", "0.inner", "0", "1", ""]
    assert trace.innermost == ""
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    (name, (entered,), (left,)) = trace.seen[2]
    assert name == "0"
    assert torch.equal(entered, x)
    assert torch.equal(left, twice(x))  # as it was before the layer in place wrote over it
    assert torch.equal(trace.output[0], left.relu())


def test_the_layer_that_fails_is_the_innermost_one():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)))
    trace = Trace(model)
    with pytest.raises(RuntimeError, match="shapes"), trace:
        model(torch.randn(1, 2))
    assert trace.innermost == "0.1"
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("views", [1, 2])
def test_the_first_layer_that_lets_units_mix_is_named(views):
    mix = Through(lambda self, x: x - x.mean(0, keepdim=True))
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh(), mix), nn.Linear(2, 2), mix)
    x = torch.randn(3 * views, 2)
    other = torch.cat([x[:views], torch.randn(2 * views, 2)])
    seen = [watched(model, images).seen for images in (x, other)]
    assert first_to_mix(*seen, rows=3 * views, views=views) == "1.1"
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    seen = [watched(model, images).seen for images in (x, other)]
    assert first_to_mix(*seen, rows=3 * views, views=views) == ""


def test_outputs_are_near_up_to_rounding_and_in_every_part():
    x = torch.tensor([1.0, float("nan")])
    assert near([x], [x * (1 + 1e-6)])
    assert not near([x], [x * 1.01])
    assert not near([x], [x, x])
    assert not near([x], [x[:1]])


def test_tensors_are_found_in_nested_outputs():
    a, b = torch.zeros(1), torch.ones(1)
    found = tensors_in({"map": a, "rest": [(b, torch.ones(1, dtype=torch.long)), None, "name"]})
    assert [t is wanted for t, wanted in zip(found, (a, b), strict=True)] == [True, True]
    assert tensors_in(torch.arange(3)) == []
