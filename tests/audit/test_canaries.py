"""Canaries: what each one's clipped gradient is, and that nobody else's changes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from made_plans import made_plan
from scipy.stats import norm
from torch import nn

from dpeq.audit.canaries import CanaryNetwork, MarkedAugment, with_canaries
from dpeq.audit.inputs import InputCanaries
from dpeq.audit.listening import listen, log_likelihood_ratio
from dpeq.audit.members import part_of
from dpeq.data.augment import AugmentConfig
from dpeq.data.images import ImageSet
from dpeq.data.views import Augment
from dpeq.errors import ConfigError
from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness

SPEC = ResNet9Spec("C4", "none", (1, 1, 2), (1, 1, 1), stem_pool=True)
C = 0.3


def make_plan(rate: float = 0.4, **changes) -> PrivacyPlan:
    return made_plan(rate, 0.7, 4, expected_batch_size=4, max_grad_norm=C, **changes)


def images(n: int = 3) -> ImageSet:
    pixels = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ImageSet(pixels, torch.arange(n) % 2, torch.arange(n), n, ("a", "b"), "train", "image")


def clipped(network: nn.Module, data: ImageSet, row: int, plan: PrivacyPlan) -> dict[str, torch.Tensor]:
    """What the product adds to the sum for one unit, by parameter."""
    wrapped = UnitGradSampleModule(network.train(), plan.views)
    optimizer = PlanOptimizer(torch.optim.SGD(network.parameters(), lr=1.0), plan)
    x = data.images[row : row + 1].repeat_interleave(plan.views, dim=0)
    y = data.labels[row : row + 1].repeat_interleave(plan.views)
    wrapped.backward(wrapped(x), y)
    optimizer.accumulate()
    total = optimizer.take_sum()
    wrapped.detach()
    named = list(network.named_parameters())
    pieces = torch.split(total, [p.numel() for _, p in named])
    return {name: piece.view(p.shape) for (name, p), piece in zip(named, pieces, strict=True)}


@pytest.mark.parametrize("clipping", ["fixed", "automatic", "per_layer"])
@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("moved", [False, True])
def test_a_canary_moves_its_own_column_by_c_and_nothing_else(clipping, views, moved):
    """Also after the drawer's weights have gone far, as they do in a long training."""
    plan = make_plan(clipping=clipping, views=views)
    network = CanaryNetwork(build_model(SPEC, 1, 2, seed=5), 4, 2, C)
    if moved:
        nn.init.normal_(network.drawer.weight, std=30.0)
    data = with_canaries(images(), [1, 3], network.label)
    whole = math.sqrt(len(list(network.parameters()))) if clipping == "per_layer" else 1.0
    for row, canary in ((3, 1), (4, 3)):
        added = clipped(network, data, row, plan)
        drawer = added.pop("drawer.weight")
        assert all(bool((other == 0).all()) for other in added.values())
        expected = torch.zeros(2, 4, dtype=torch.float64)
        expected[:, canary] = network.direction * C / whole
        torch.testing.assert_close(drawer, expected, rtol=2e-4, atol=1e-9)
        assert drawer.norm() <= C / whole


def test_other_units_are_what_they_would_be_without_canaries():
    plan, plain, data = make_plan(), build_model(SPEC, 1, 2, seed=5), images()
    network = CanaryNetwork(build_model(SPEC, 1, 2, seed=5), 4, 2, C)
    marked = with_canaries(data, [0], network.label)
    for row in range(3):
        alone, beside = clipped(plain, data, row, plan), clipped(network, marked, row, plan)
        assert bool((beside.pop("drawer.weight") == 0).all())
        for name, gradient in alone.items():
            torch.testing.assert_close(beside[f"network.{name}"], gradient)


def test_class_weights_do_not_shorten_a_canary():
    plan = make_plan()
    network = CanaryNetwork(build_model(SPEC, 1, 3, seed=5), 1, 3, C, class_weights=(0.0, 1e-6, 1e-7))
    assert network.label == 1
    wrapped = UnitGradSampleModule(network.train())
    data = with_canaries(images(), [0], network.label)
    wrapped.backward(wrapped(data.images[3:]), data.labels[3:], torch.tensor([0.0, 1e-6, 1e-7]))
    gradient = network.drawer.weight.grad_sample[0, :, 0].double()
    assert gradient.norm() >= 1000 * plan.max_grad_norm
    torch.testing.assert_close(gradient / gradient.norm(), network.direction, rtol=1e-5, atol=1e-6)


def test_marks_survive_every_view():
    augment = Augment(AugmentConfig(shift=2, rotate=30, scale=0.2, flip=("x",), brightness=1.0, noise=1.0), 2)
    marked = MarkedAugment(augment)
    data = with_canaries(images(), [6], 0)
    stream = Randomness.create(3).stream("augment", 1)
    draws = marked.draw(stream, 4)
    seen = marked(data.images, draws)
    torch.testing.assert_close(seen[:, -1], data.images[:, -1], rtol=0, atol=0)
    assert seen[3, -1].unique().tolist() == [7.0]
    again = augment(data.images[:, :1], augment.draw(Randomness.create(3).stream("augment", 1), 4))
    torch.testing.assert_close(seen[:, :1], again, rtol=0, atol=0)


def test_each_canary_is_a_unit_of_its_own():
    data = with_canaries(images(), [2, 0], 1)
    assert (data.n_units, data.units.tolist(), data.labels.tolist()[3:]) == (5, [0, 1, 2, 3, 4], [1, 1])
    assert data.images[:, -1, 0, 0].tolist() == [0, 0, 0, 3, 1]
    nobody = with_canaries(images(), [], 1)
    assert nobody.n_units == 3
    assert nobody.images.shape == (3, 2, 8, 8)


def test_too_many_canaries_are_refused():
    with pytest.raises(ConfigError, match="canaries"):
        CanaryNetwork(nn.Identity(), 0, 2, C)


def test_what_is_heard_is_the_released_sum():
    """Against the optimiser's own arithmetic: B times the mean, along the direction, over sigma * C; only its own."""
    plan = make_plan()
    network = CanaryNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 3, 2, C)
    optimizer = PlanOptimizer(torch.optim.SGD(network.parameters(), lr=1.0), plan)
    total = torch.randn(optimizer.dimensions, dtype=torch.float64)
    stranger = nn.Parameter(torch.zeros(2))
    stranger.grad = torch.ones(2)
    heard = []
    with listen(network, plan, heard.append):
        torch.optim.SGD([stranger], lr=1.0).step()
        optimizer.apply(total)
    optimizer.apply(total)
    assert len(heard) == 1
    drawer = total[-6:].view(2, 3)
    expected = (drawer[1] - drawer[0]) / math.sqrt(2) / (0.7 * C)
    np.testing.assert_allclose(heard[0], expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("rate", "clipping"), [(0.4, "fixed"), (1.0, "fixed"), (0.4, "per_layer")])
def test_the_score_is_the_likelihood_ratio(rate, clipping):
    plan = make_plan(rate, clipping=clipping)
    heard = np.array([-3.0, 0.0, 1.0, 40.0])
    shift = 1 / 0.7 / (2.0 if clipping == "per_layer" else 1.0)
    ratio = 1 - rate + rate * norm.pdf(heard[:3], shift) / norm.pdf(heard[:3])
    found = log_likelihood_ratio(heard, plan, tensors=4)
    np.testing.assert_allclose(found[:3], np.log(ratio), rtol=1e-9)
    assert found[3] == pytest.approx(math.log(rate) + 40 * shift - shift**2 / 2)


def test_data_with_all_that_a_manifest_knows_takes_canaries_and_loses_none_of_its_units():
    """Marks of burned-in text, cases and patients are of the images that were there."""
    n = 6
    full = dataclasses.replace(
        images(n), cases=torch.arange(n), patients=torch.arange(n), burned_in=torch.zeros(n, dtype=torch.bool)
    )
    for units in (
        with_canaries(full, [0, 3], 1),
        InputCanaries.make(5, (1, 8, 8), 2).beside(full, [0, 3]),
        part_of(full, np.arange(n) > 1),
    ):
        assert units.cases is units.patients is units.burned_in is units.groups is None
        assert units.unit == full.unit
    assert with_canaries(full, [0, 3], 1).n_units == n + 2
    assert part_of(full, np.arange(n) > 1).n_units == n - 2
